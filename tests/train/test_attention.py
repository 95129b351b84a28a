"""The attention of training, through the model's seam: every kind, packed documents, tables of a step."""

from dataclasses import replace

import pytest
import torch

from app.errors import ConfigError
from app.kernels.ms_attn import ms_attention
from app.kernels.rope import rope_table, rotate
from app.kernels.sf_attn import PATTERNS, allowed
from app.train.attention import KINDS, TrainingAttention, install, uninstall
from app.train.pretrain.region_loss import RegionProbe
from tests import tiny

HEADS, DIM = 4, 8
SHORT = replace(tiny.SMALL, budget_tokens=48)


def attention(kind="full", **given):
    made = TrainingAttention(kind, selection=SHORT, **given)
    made._inv_freq = 10_000.0 ** -(torch.arange(0, DIM, 2) / DIM)
    return made


def inputs(tokens, batch=1):
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(batch, h, tokens, DIM, generator=generator).requires_grad_() for h in (HEADS, 2, 2)]


def dense(q, k, v, seen):
    """Rotated at places in the row; `seen`: [Hq, T, T] bool. A query that sees nothing gives 0."""
    cos, sin = rope_table(attention()._inv_freq, q.shape[2], 1.0, q.dtype)
    k, v = (x.repeat_interleave(HEADS // x.shape[1], dim=1) for x in (rotate(k, cos, sin), v))
    logits = rotate(q, cos, sin) @ k.transpose(-1, -2) * 0.3
    return logits.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num() @ v


def selected(q, k, v):
    cos, sin = rope_table(attention()._inv_freq, q.shape[2] + 64, 1.0, q.dtype)
    return ms_attention(q, k, v, cos, sin, scale=0.3, options=SHORT)


def causal(tokens):
    return torch.ones(HEADS, tokens, tokens).tril().bool()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 63, 100])
def test_every_kind_is_what_its_name_says(kind, tokens):
    given = inputs(tokens, 2)
    if kind == "ms":
        expected = selected(*given)
    else:
        seen = causal(tokens)
        if kind in PATTERNS:
            seen = torch.stack([allowed(PATTERNS[kind], tokens, head, HEADS) for head in range(HEADS)])
        expected = dense(*given, seen)
    out = attention(kind).attend(0, *given, 0.3)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    found, wanted = (torch.autograd.grad(x.square().sum(), given) for x in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# Two rows of 100: documents of 60, 3 and 30 tokens and padding; padding, 90 tokens. A number may come again.
PACKED = torch.tensor([[4] * 60 + [5] * 3 + [4] * 30 + [-1] * 7, [-1] * 10 + [0] * 90])
SPANS = [(0, 0, 60), (0, 60, 63), (0, 63, 93), (1, 10, 100)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_document_comes_out_as_if_it_stood_alone(kind):
    """Also when padding is not a number; groups are those of the whole row."""
    given = inputs(100, 2)
    with torch.no_grad():
        for x in given:
            x[PACKED[:, None, :, None].expand_as(x) < 0] = float("nan")
    packed = attention(kind)
    packed.documents = PACKED
    out = packed.attend(0, *given, 0.3)
    alone = attention(kind, pattern=replace(PATTERNS[kind], group_tokens=25) if kind in PATTERNS else None)
    for row, start, stop in SPANS:
        part = alone.attend(0, *(x[row : row + 1, :, start:stop] for x in given), 0.3)
        torch.testing.assert_close(out[row : row + 1, :, start:stop], part, atol=1e-5, rtol=1e-5)
    assert (out.transpose(1, 2)[PACKED < 0] == 0).all()
    for gradient in torch.autograd.grad(out.sum(), given):
        assert gradient.isfinite().all()


def test_one_document_to_a_row_is_no_packing():
    given = inputs(40, 2)
    packed = attention()
    packed.documents = torch.tensor([[0] * 40, [7] * 40])
    assert torch.equal(packed.attend(0, *given, 0.3), attention().attend(0, *given, 0.3))


def test_a_seam_of_two_documents_cuts_the_row():
    """Cyclic positions with the seam masked: what stands after it does not see what stands before."""
    packed, given = attention(), inputs(20)
    packed.documents = (torch.arange(20) >= 12).long()[None]
    seen = causal(20)
    seen[:, 12:, :12] = False
    torch.testing.assert_close(packed.attend(0, *given, 0.3), dense(*given, seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_a_step_is_used_by_every_kind(kind):
    """A rolled table whose seam lies behind the row changes nothing, one whose seam lies in it does."""
    given, made = inputs(100), attention(kind)
    plain = made.attend(0, *given, 0.3)
    cos, sin = rope_table(made._inv_freq, 400, 1.0, torch.float32)
    for shift, same in ((7, True), (380, False)):
        made.table = (cos.roll(-shift, 0), sin.roll(-shift, 0))
        assert torch.allclose(made.attend(0, *given, 0.3), plain, atol=1e-4) == same


def test_first_layers_may_see_everything():
    given = inputs(100)
    made = TrainingAttention("ms", selection=replace(SHORT, dense_layers=1))
    made._inv_freq = attention()._inv_freq
    torch.testing.assert_close(made.attend(0, *given, 0.3), dense(*given, causal(100)), atol=1e-5, rtol=1e-5)
    assert torch.equal(made.attend(1, *given, 0.3), attention("ms").attend(1, *given, 0.3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_itself_while_its_text_is_seen_whole(kind):
    """Against transformers; and taken out again nothing of ours is left."""
    model, ids = tiny.model(), torch.tensor([tiny.token_ids(40)] * 2)
    pattern = replace(PATTERNS[kind], group_tokens=40) if kind in PATTERNS else None
    with torch.no_grad():
        stock = model(ids).logits
        install(model, TrainingAttention(kind, selection=SHORT, pattern=pattern))
        install(model, TrainingAttention(kind, selection=SHORT, pattern=pattern))  # over another
        ours = model(ids, use_cache=False).logits
        uninstall(model)
        uninstall(model)
        again = model(ids).logits
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, stock)
    assert "training_attention" not in vars(model.model.layers[0].self_attn)


@pytest.mark.parametrize("kind", ["full", "sf", "ms"])
def test_checkpointed_layers_have_the_same_gradients(kind):
    """And the loss on region scores is taken once."""
    ids, found = torch.tensor([tiny.token_ids(104)] * 2), []
    for saving in (False, True):
        model = tiny.model().train()
        probe = RegionProbe(region_tokens=8, key_sub=2) if kind == "full" else None
        install(model, TrainingAttention(kind, selection=SHORT, probe=probe))
        if saving:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for _ in range(2):
            model.zero_grad()
            if probe is not None:
                torch.manual_seed(0)  # which regions are remembered
                probe.start(torch.tensor([[103, 60]] * 2))
            loss = model(ids, labels=ids, use_cache=False).loss
            (loss + sum(probe.losses.values()) if probe else loss).backward()
        found.append([p.grad.clone() for p in model.parameters()])
        assert probe is None or len(probe.losses) == 2
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_training_in_bfloat16_autocast_gives_gradients():
    for kind in KINDS:
        model, ids = tiny.model().train(), torch.tensor([tiny.token_ids(104)])
        install(model, TrainingAttention(kind, selection=SHORT))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), kind


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ConfigError, match="attention = 'sparse': not known; choose one of full, block"):
        TrainingAttention("sparse")
    with pytest.raises(ConfigError, match="attention = 'ms': the loss on region scores needs full"):
        TrainingAttention("ms", probe=RegionProbe())
    with pytest.raises(ConfigError, match="positions = 'one_distance': not for training"):
        TrainingAttention("ms", selection=replace(SHORT, positions="one_distance"))
    made, given = attention(), inputs(20)
    made.documents = torch.zeros(1, 19, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"documents of \(1, 19\) for a batch of \(1, 20\)"):
        made.attend(0, *given, 0.3)
    made.documents, made.table = None, rope_table(made._inv_freq, 19, 1.0, torch.float32)
    with pytest.raises(ValueError, match="a rotary table of 19 positions for 20"):
        made.attend(0, *given, 0.3)
    probed = attention(probe=RegionProbe(region_tokens=8, key_sub=2))
    probed.documents = torch.tensor([[0] * 8 + [1] * 8])
    probed.probe.start(torch.tensor([[15]]))
    with pytest.raises(ValueError, match="taken from whole rows"):
        probed.attend(0, *inputs(16), 0.3)


def test_a_cache_and_a_padding_mask_are_refused():
    model, ids = tiny.model(), torch.tensor([tiny.token_ids(20)])
    install(model, TrainingAttention())
    with pytest.raises(ValueError, match="mark padding with -1"):
        model(ids, attention_mask=torch.tensor([[0] + [1] * 19]), use_cache=False)
    with torch.no_grad(), pytest.raises(ValueError, match="use_cache=False"):
        past = model(ids, use_cache=True).past_key_values
        model(ids[:, :1], past_key_values=past, use_cache=True)
