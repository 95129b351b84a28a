"""One contender in a process of its own, so that its memory is its own: it reads a text, then decodes.

`peers.py` starts it: python benchmarks/contender.py JOB, where JOB is a JSON file; prints one JSON line.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WARM_TOKENS = 256  # read before anything is measured
WARM_STEPS = 2
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Job:
    """What a contender has to do.

    Attributes:
        kind: a key of KINDS.
        ids: file with the token ids of the text, JSON.
        read: tokens of it to read. decode: steps to measure afterwards.
        options: further arguments of the contender.
    """

    kind: str
    model: str
    ids: str
    read: int
    decode: int
    threads: int
    options: dict[str, Any]


class Contender(Protocol):
    def read(self, ids: list[int]) -> None:
        """Read a text, all of it, forgetting what was read before."""

    def steps(self, last: int, count: int) -> Iterator[int]:
        """Greedy tokens after the text and `last`, one by one."""


class Ours:
    """Lectern's engine, under the shipped policy or another one, with weights that it chooses or is told."""

    def __init__(self, job: Job, policy: str = "keep-all", weights: str = "auto") -> None:
        from app.runtime.load import load_engine
        from app.settings import Settings, fill

        values = {"model": job.model, "threads": job.threads, "policy": policy, "device": "cpu", "draft_tokens": 0}
        values["weights"] = weights
        self.engine = load_engine(fill(Settings, environment={}, flags=values))
        self.engine.stop_ids = frozenset()

    def read(self, ids: list[int]) -> None:
        self.memory = self.engine.read(ids)

    def steps(self, last: int, count: int) -> Iterator[int]:
        from app.memory.config import GenerationConfig

        cache = self.engine.open_chat([self.memory])
        return self.engine.generate(cache, [last], GenerationConfig(max_new_tokens=count))


class Stock:
    """Transformers with sdpa. It reads beyond the trained length at original positions: its speed counts alone."""

    def __init__(self, job: Job, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(job.threads)
        torch.set_grad_enabled(False)
        kind = getattr(torch, dtype)
        self.model = AutoModelForCausalLM.from_pretrained(job.model, dtype=kind, attn_implementation="sdpa").eval()

    def read(self, ids: list[int]) -> None:
        import torch

        self.cache = None
        answer = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        self.cache = answer.past_key_values

    def steps(self, last: int, count: int) -> Iterator[int]:
        import torch

        for _ in range(count):
            answer = self.model(torch.tensor([[last]]), past_key_values=self.cache, use_cache=True)
            last = int(answer.logits[0, -1].argmax())
            yield last


class LlamaCpp:
    """llama.cpp out of the wheel xllamacpp, as its server runs it. Original positions too."""

    def __init__(self, job: Job, gguf: str, flash: bool) -> None:
        import xllamacpp

        from scripts.llama_cpp import LlamaCpp as Server

        flags = xllamacpp.llama_flash_attn_type
        kind = xllamacpp.ggml_type.GGML_TYPE_F16
        self.server = Server(
            Path(gguf),
            job.read + job.decode + 64,
            threads=job.threads,
            cache_type_k=kind,
            cache_type_v=kind,
            flash_attn_type=flags.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else flags.LLAMA_FLASH_ATTN_TYPE_DISABLED,
            cache_ram_mib=0,
            n_ctx_checkpoints=0,
        )

    def read(self, ids: list[int]) -> None:
        self.ids = ids
        self.server.go_on(ids, 1)

    def steps(self, last: int, count: int) -> Iterator[int]:
        """What was read stays in the slot: only `last` is run before the first token comes."""
        return self.server.stream([*self.ids, last], count)


KINDS: dict[str, Callable[..., Contender]] = {"lectern": Ours, "transformers": Stock, "llama.cpp": LlamaCpp}


def run(job: Job, folder: Path, name: str) -> dict[str, Any]:
    """Run a job in a process of its own and return what it measured."""
    path = folder / f"job-{name}.json"
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, __file__, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise RuntimeError(f"{name}: {answer.stderr.strip()[-2000:]}")
    return json.loads(answer.stdout.strip().splitlines()[-1])


def main() -> int:
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    ids = json.loads(Path(job.ids).read_text(encoding="utf-8"))
    contender = KINDS[job.kind](job, **job.options)
    contender.read(ids[:WARM_TOKENS])
    list(contender.steps(ids[WARM_TOKENS], WARM_STEPS))
    held = _memory("VmRSS")
    read = _timed(lambda: contender.read(ids[: job.read]))
    tokens, steps = [], []
    stream = contender.steps(ids[job.read], WARM_STEPS + job.decode)
    first = _timed(lambda: tokens.append(next(stream)))
    tokens += islice(stream, WARM_STEPS - 1)
    for _ in range(job.decode):
        steps.append(_timed(lambda: tokens.append(next(stream))))
    values = {
        "read_s": read,
        "first_step_s": first,
        "step_ms": [round(1000 * statistics.median(x), 3) for x in zip(*steps, strict=True)],
        "held_bytes": held,
        "peak_bytes": _memory("VmHWM"),
        "tokens": tokens,
    }
    print(json.dumps(values))
    return 0


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """(wall, processor) seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def _memory(name: str) -> int:
    """Bytes of this process by a name of /proc/self/status: VmRSS now, VmHWM at most."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main())
