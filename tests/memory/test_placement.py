"""The index counts in the device's budget: what lies where, and that choices do not depend on it."""

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.kernels.layout import BLOCK
from app.memory.config import GenerationConfig
from app.memory.memory import RegionMemory
from app.memory.pools import Share, Tiers, zeros
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"levels": 10, "coarse": 20, "fine": 40, "books": 5}


class Owner:
    """A memory, as far as a share is concerned."""


@pytest.mark.parametrize(
    ("limit", "on_host"),
    [
        (None, set()),
        (75, set()),
        (74, {"books"}),
        (69, {"fine", "books"}),  # what comes after it goes too, small as it is
        (30, {"fine", "books"}),
        (29, {"coarse", "fine", "books"}),
        (9, set(PARTS)),
    ],
)
def test_what_there_is_no_room_for_goes_to_the_host(limit, on_host):
    share, owner = Share(limit), Owner()
    assert share.settle(owner, PARTS) == on_host
    assert share.taken == sum(size for name, size in PARTS.items() if name not in on_host)


def test_memories_share_and_give_back():
    share, first, second = Share(100), Owner(), Owner()
    assert not share.settle(first, PARTS)
    assert share.settle(second, PARTS) == {"coarse", "fine", "books"}
    assert share.settle(first, {name: 2 * size for name, size in PARTS.items()}) == {"fine", "books"}
    del first
    gc.collect()
    assert not share.settle(second, PARTS) and share.taken == 75


def test_a_quarter_of_the_device_budget_is_for_the_index():
    engine = tiny.engine()
    shape = replace(engine.shape, tiers=Tiers(device_bytes=1 << 20))
    shape.tiers.open(shape)
    (pool,) = shape.tiers.hot
    assert shape.tiers.share.limit == 1 << 18 and pool.limit == 3 * (1 << 18) // pool.slot_bytes


def sized(engine, share_bytes):
    engine.shape.tiers.share.limit = share_bytes
    return engine


def in_few_steps(engine):
    """For long texts: reading them in segments of four groups takes seconds."""
    engine.segment_tokens = engine.most_segment_tokens = 1024
    return engine


@pytest.mark.parametrize("tokens", [100, 4200])
def test_bytes_by_part_are_those_held(tokens):
    """Tokens that fill a span of 1,024 means have a tree."""
    memory = in_few_steps(tiny.engine()).read(tiny.token_ids(tokens))
    tensors = [t for layers in memory.index.means.values() for t in layers]
    tensors += [t for levels in memory.index.levels for level in levels for t in level.tensors()]
    parts = memory.index.parts(memory.capacity)
    assert sum(t.numel() * t.itemsize for t in tensors) == sum(parts.values()) == memory.index.size_bytes
    assert (parts["levels"] > 0) == (tokens > 4096)


def test_codes_take_no_more_than_is_counted():
    engine = tiny.engine(replace(tiny.SMALL, candidates=8))
    memory = engine.read(tiny.token_ids(1024))
    list(engine.generate(engine.open_chat([memory]), [7, 8], GenerationConfig(max_new_tokens=2)))
    sketch, blocks = memory.index.sketch, BLOCK * tiny.SMALL.region_tokens
    assert 0 < sketch.size_bytes <= sketch.most_bytes(-(-1024 // blocks) * blocks)


@pytest.mark.parametrize("left", [0, 1 << 14])
def test_choices_do_not_depend_on_where_the_index_lies(left):
    ids = tiny.token_ids(4200)
    free, short = tiny.engine(), sized(tiny.engine(), left)
    torch.testing.assert_close(short.log_probs(ids), free.log_probs(ids), atol=0, rtol=0)
    memories = [engine.read(ids) for engine in (free, short)]
    assert not memories[0].index.on_host and {"fine"} <= memories[1].index.on_host
    assert short.shape.tiers.share.taken <= left < memories[1].index.size_bytes
    assert memories[1].index.host_bytes > 0 == memories[0].index.host_bytes
    for group in (0, memories[0].groups - 1):
        assert memories[0].export_group(group) == memories[1].export_group(group)


def test_a_memory_that_grows_moves_and_keeps_what_it_holds():
    engine = tiny.engine()
    ids = tiny.token_ids(600)
    memory = engine.read(ids[:304], resume=RegionMemory(engine.shape))
    sized(engine, memory.index.size_bytes)
    assert not memory.index.on_host
    grown, expected = engine.read(ids, resume=memory), tiny.engine().read(ids)
    assert "fine" in grown.index.on_host
    assert grown.export_group(3) == expected.export_group(3) and grown.export_mass() == expected.export_mass()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the platform does not tell")
def test_room_on_a_cpu_takes_no_memory_until_it_is_used():
    script = (
        "import torch\n"
        "from app.system import forget_peak, peak_bytes\n"
        "from app.memory.pools import zeros\n"
        "forget_peak()\n"
        "before = peak_bytes()\n"
        "rooms = [zeros(2, 50, 1 << 16, dtype=torch.bfloat16, device=torch.device('cpu')) for _ in range(20)]\n"
        "for room in rooms:\n"
        "    room[:, :1] = 1\n"
        "print(peak_bytes() - before, float(room[1, :10].float().sum()))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, total = done.stdout.split()
    assert int(grown) < 16 << 20 and float(total) == 1 << 16  # of 262 MB; huge pages would be 84


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the platform does not tell")
def test_many_small_parts_need_no_mappings_of_their_own():
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    before = mappings()
    parts = [zeros(2, 64, 64, dtype=torch.float32, device=torch.device("cpu")) for _ in range(2000)]
    assert len(parts) == 2000 and mappings() - before < 200


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_reads_and_writes_what_lies_on_the_host():
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated()
    rows = zeros(2, 1000, 64, dtype=torch.bfloat16, device=device, host=True)
    assert rows.is_cuda and torch.cuda.memory_allocated() == before
    values = torch.randn(2, 100, 64, device=device, dtype=torch.bfloat16)
    rows[:, 300:400] = values
    picked = rows.view(-1, 64).index_select(0, torch.tensor([301, 1301], device=device))
    torch.testing.assert_close(picked, torch.stack([values[0, 1], values[1, 1]]), atol=0, rtol=0)
    assert not rows[:, 400:].any() and torch.equal(rows.cpu()[:, 300:400], values.cpu())
