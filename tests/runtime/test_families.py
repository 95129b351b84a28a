"""What must hold on every architecture: exact while it fits, blind to the future, the same however it is cut up."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from app.memory.config import AttentionConfig, GenerationConfig
from app.memory.pages import KVPages
from app.models.checkpoint import Recipe
from app.runtime.cache import RegionCache
from app.runtime.engine import Engine
from app.runtime import step
from tests import tiny

SIZES = dict(
    vocab_size=262,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
LONG = 300  # tokens; the budget is 64, a group 16
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def stock_model(family: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # Qwen2's, zero when fresh
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def engine(family: str) -> Engine:
    return make_engine(family, tiny.SMALL)


def make_engine(family: str, attention: AttentionConfig) -> Engine:
    recipe = Recipe(attention=attention, trained_tokens=attention.budget_tokens)
    made = Engine(stock_model(family), tiny.byte_tokenizer(), recipe, name=family, kv_dtype=torch.float32)
    made.stop_ids = frozenset()
    return made


def run(engine: Engine, ids: list[int], sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a text fed in pieces, and those of ten more tokens after it, one by one."""
    cache, parts, start = engine.open_chat(), [], 0
    for size in sizes:
        parts.append(engine.forward(cache, ids[start : start + size]))
        start += size
    assert start == len(ids)
    after = [engine.forward(cache, [token]) for token in tiny.token_ids(11, seed=9)[1:]]
    return engine.logits(torch.cat(parts)), engine.logits(torch.cat(after))


def stock_logits(family: str, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return stock_model(family)(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("sizes", [[64], [16, 16, 5, 1, 1, 24]])
def test_equals_transformers_while_everything_fits(family: str, engine: Engine, sizes: list[int]) -> None:
    ids = tiny.token_ids(sum(sizes))
    cache, parts, start = engine.open_chat(), [], 0
    for size in sizes:
        parts.append(engine.forward(cache, ids[start : start + size]))
        start += size
    torch.testing.assert_close(engine.logits(torch.cat(parts)), stock_logits(family, ids), **CLOSE)


def test_a_second_turn_equals_transformers_while_everything_fits(family: str, engine: Engine) -> None:
    """A document read alone, a turn with its answer, and another turn: as one text in the stock model."""
    document, first, second = tiny.token_ids(20), tiny.token_ids(9, seed=1)[1:], tiny.token_ids(12, seed=2)[1:]
    cache = engine.open_chat([engine.read(document)])
    answer = list(engine.generate(cache, first, GenerationConfig(max_new_tokens=6)))
    seen = engine.logits(engine.forward(cache, second))
    whole = [*document, *first, *answer, *second]
    torch.testing.assert_close(seen, stock_logits(family, whole)[-len(second) :], **CLOSE)


def test_prefill_in_one_three_or_ten_segments(engine: Engine) -> None:
    ids = tiny.token_ids(LONG)
    one, after_one = run(engine, ids, [LONG])
    for sizes in ([112, 96, 92], [32] * 9 + [12]):
        pieces, after = run(engine, ids, sizes)
        torch.testing.assert_close(pieces, one, **CLOSE)
        torch.testing.assert_close(after, after_one, **CLOSE)


def gradient(engine: Engine, ids: list[int], *, with_cache: bool) -> torch.Tensor:
    """[T, T]: largest gradient of each output (first axis) by each input (second axis), through the whole model."""
    embedded = engine.model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
    cache = engine.open_chat() if with_cache else None
    hidden = engine.model.model(inputs_embeds=embedded, past_key_values=cache, use_cache=with_cache).last_hidden_state
    weights = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(1))
    outputs = (hidden[0] * weights).sum(-1)  # [T]
    each = torch.eye(len(ids))
    rows = torch.autograd.grad(outputs, embedded, each, is_grads_batched=True)[0]  # [T, 1, T, hidden]
    return rows[:, 0].abs().amax(-1)


@pytest.mark.parametrize("with_cache", [False, True])
def test_no_gradient_comes_from_the_future(family: str, with_cache: bool) -> None:
    """Of the oracle (no cache) and of the path that answers; the first 24 tokens see everything, the rest select."""
    short = AttentionConfig(budget_tokens=24, region_tokens=4, merge=2, query_sub=2, key_sub=2, coarse_sub=4)
    found = gradient(make_engine(family, short), tiny.token_ids(45), with_cache=with_cache)
    assert found.triu(1).count_nonzero() == 0
    assert (found.diagonal() > 0).all()
    assert (found[1:, 0] > 0).all()  # the sinks are always seen


def generate(engine: Engine, ids: list[int], cache: RegionCache) -> list[int]:
    """What generate() of transformers adds; it runs what the cache does not hold yet.

    A text beyond the budget is run but for its last token, as the engine does it: what is prefilled together selects
    together.
    """
    prompt = torch.tensor([ids])
    if len(ids) > engine.budget_tokens:
        engine.model(prompt[:, cache.get_seq_length() : -1], past_key_values=cache)
    with_answer = engine.model.generate(prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache, **GREEDY)
    return with_answer[0, len(ids) :].tolist()


@pytest.mark.parametrize("tokens", [20, LONG])
def test_generate_of_transformers_writes_what_the_engine_writes(engine: Engine, tokens: int) -> None:
    """Greedy, over two turns, with everything fitting and with selection; the cache goes on in between."""
    ours, theirs = engine.open_chat(), engine.open_chat()
    config = GenerationConfig(max_new_tokens=GREEDY["max_new_tokens"])
    whole: list[int] = []
    left: list[int] = []
    for turn in (tiny.token_ids(tokens), tiny.token_ids(20, seed=1)[1:]):
        answer = list(engine.generate(ours, left + turn, config))
        assert generate(engine, whole + turn, theirs) == answer
        whole += turn + answer
        left = [answer[-1]]  # generate() leaves it to the next turn; a decoded token selects for itself alone
        ours.tail.truncate(ours.tail.tokens - 1)


def test_generate_of_transformers_over_a_memory_that_was_read(engine: Engine) -> None:
    document, turn = tiny.token_ids(LONG), tiny.token_ids(20, seed=1)[1:]
    memory = engine.read(document)
    ours = list(engine.generate(engine.open_chat([memory]), turn, GenerationConfig(max_new_tokens=12)))
    assert generate(engine, document + turn, engine.open_chat([memory])) == ours


def test_permuted_heads_answer_alike(engine: Engine) -> None:
    """Invariant (d): KV heads change places, with the query heads that share them, in weights and norms."""
    ids, order = tiny.token_ids(LONG), [1, 0]
    expected = engine.log_probs(ids)
    for layer in engine.model.model.layers:
        attention = layer.self_attn
        with torch.no_grad():
            for name in ("q_proj", "k_proj", "v_proj"):
                for weight in getattr(attention, name).parameters():  # of one layer's rows, or their biases
                    weight.copy_(weight.unflatten(0, (2, -1))[order].flatten(0, 1))
            output = attention.o_proj.weight
            output.copy_(output.unflatten(1, (2, -1))[:, order].flatten(1, 2))
    torch.testing.assert_close(engine.log_probs(ids), expected, **CLOSE)


def test_later_tokens_move_nothing_before_their_group(engine: Engine) -> None:
    """Invariant (e): a group's choice may follow all of its own queries, and nothing after them."""
    ids, other = tiny.token_ids(LONG), [*tiny.token_ids(LONG)[:272], *tiny.token_ids(LONG - 272, seed=5)]
    torch.testing.assert_close(engine.log_probs(other)[:271], engine.log_probs(ids)[:271], atol=0, rtol=0)


def test_nothing_beyond_the_budget_is_gathered_or_numbered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants (f) and (g): every position from the budget on is poisoned, and what is gathered is counted."""
    budget, gathered, take = engine.budget_tokens, [], KVPages.take

    def counted(pages: KVPages, layer: int, heads: torch.Tensor, regions: torch.Tensor):
        gathered.append(len(regions) * tiny.SMALL.region_tokens // heads.unique().numel())
        return take(pages, layer, heads, regions)

    monkeypatch.setattr(KVPages, "take", counted)
    cos, sin = engine.spec.rope(4096, torch.zeros(1))
    cos[budget:], sin[budget:] = torch.nan, torch.nan
    engine.segment_tokens = engine.most_segment_tokens = 16  # a group at a time, so that sizes compare
    assert engine.log_probs(tiny.token_ids(700)).isfinite().all()
    cache = engine.open_chat([engine.read(tiny.token_ids(700))])
    assert engine.forward(cache, [7]).isfinite().all()
    assert gathered and max(gathered) == budget


def test_tokens_in_windows_say_what_tokens_that_choose_say(engine):
    """Layer by layer without transformers' own code around it (`app/runtime/step.py`), where everything fits."""
    memory, said = engine.read(tiny.token_ids(24)), []
    assert step.Rows(engine.model).known
    for every in (1, 8):
        engine.reselect_every, cache = every, engine.open_chat([memory])
        tokens = list(engine.generate(cache, tiny.token_ids(9, seed=1)[1:], GenerationConfig(max_new_tokens=12)))
        said.append((tokens, cache.evidence.density, *cache.tail.pages.rows(1, 0, 16)))
    assert said[0][0] == said[1][0]
    torch.testing.assert_close(said[0][1:], said[1][1:], **CLOSE)


def test_a_bfloat16_model_answers_as_its_layers_do(engine):
    """Tokens of an answer go through layers in float32; what they say is what transformers' bfloat16 says, nearly."""
    engine.model.to(torch.bfloat16)
    memory = engine.read(tiny.token_ids(24))
    near, stock = engine.open_chat([memory]), engine.open_chat([memory])
    said = engine.choosing_step(near, 7)
    wanted = engine.logits(engine.forward(stock, [7])[-1])
    assert said.shape == wanted.shape and near.tail.tokens == stock.tail.tokens == 1
    assert 0 < (said.float() - wanted.float()).abs().max() < 0.05 * wanted.float().abs().max()
    assert len(list(engine.generate(near, [5], GenerationConfig(max_new_tokens=9)))) <= 9
