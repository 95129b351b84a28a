"""Where answers look, and how likely they are when it is taken away."""

from dataclasses import replace

import pytest
import torch

from app.memory.config import GenerationConfig
from app.runtime.decode import KEPT_BY_WORDS
from app.runtime.cache import SINK_TOKENS
from app.runtime.evidence import MOST_PER_TOKEN, AnswerEvidence
from tests import tiny

LONG, REGION = 300, 8
TURN = tiny.token_ids(6, seed=4)[1:]


def answer(engine, cache, count=5):
    engine.stop_ids = frozenset()
    return list(engine.generate(cache, TURN, GenerationConfig(max_new_tokens=count)))


def drafted(texts, *, policy="keep-all", allowed=None):
    """An answer after a draft of five tokens, and its cache."""
    engine = tiny.engine(policy=policy)
    engine.draft_tokens = 5
    cache = engine.open_chat([engine.read(text) for text in texts])
    if allowed is not None:
        cache.allow(allowed)
    return answer(engine, cache), cache


def stock_mass(ids, first, count):
    """Attention of transformers' own model, summed over layers and heads: [count queries, keys]."""
    model = tiny.model()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        layers = model(torch.tensor([ids]), output_attentions=True).attentions
    return torch.cat(layers)[:, :, first : first + count].sum((0, 1))


def test_evidence_is_the_attention_of_the_queries_that_predict_the_answer():
    """Everything fits the budget, so the stock model's attention is the truth."""
    engine, text = tiny.engine(), tiny.token_ids(30)
    cache = engine.open_chat([engine.read(text)])
    said = answer(engine, cache)
    mass = stock_mass([*text, *TURN, *said], len(text) + len(TURN) - 1, len(said))[:, : len(text)]
    mass[:, :SINK_TOKENS] = 0
    local = torch.arange(len(text)) >= 24  # the region before the tail's own, while the tail is in its first region
    inside = torch.arange(len(TURN) - 1, len(TURN) - 1 + len(said)) // REGION < 1
    mass[inside[:, None] & local] = 0
    lengths = torch.tensor([REGION - SINK_TOKENS, REGION, REGION, 6])
    expected = torch.stack([part.sum(-1) for part in mass.split(REGION, dim=-1)], dim=-1) / lengths
    torch.testing.assert_close(cache.evidence.density, expected.square().sum(0).sqrt(), atol=1e-5, rtol=1e-4)
    looks = cache.evidence.looks()
    assert len(looks) == len(said)
    for look, row in zip(looks, expected, strict=True):
        assert look[0][0] == int(row.argmax()) and len(look) == min(MOST_PER_TOKEN, int((row > 0).sum()))
        assert look[0][1] == pytest.approx(float(row.max() / row.sum()), abs=1e-4)


def test_shares_tell_documents_chat_and_question_apart():
    """Everything fits the budget, so the stock model's attention is the truth; the first turn is the chat before."""
    engine, text, earlier = tiny.engine(), tiny.token_ids(12), tiny.token_ids(8, seed=9)[1:]
    cache = engine.open_chat([engine.read(text)])
    engine.run(cache, earlier)
    said = answer(engine, cache)
    first, asked = len(text), len(text) + len(earlier)
    mass = stock_mass([*text, *earlier, *TURN, *said], asked + len(TURN) - 1, len(said) + 1)
    rows = engine.shape.layers * engine.model.config.num_attention_heads
    found, steps = cache.evidence.shares, len(said) + 1  # the last token is run, and predicts nothing that is kept
    assert found.chat == pytest.approx(float(mass[:, first:asked].sum()) / steps / rows, abs=1e-4)
    assert found.question == pytest.approx(float(mass[:, asked : asked + len(TURN)].sum()) / steps / rows, abs=1e-4)
    seen = float(mass[:-1, SINK_TOKENS:first].sum()) / len(said) / rows
    assert sum(found.documents) == pytest.approx(seen, abs=1e-4)
    assert 0 < sum(found.documents) + found.chat + found.question < 1


def test_shares_of_the_chat_are_not_known_where_tokens_are_dropped():
    engine = tiny.engine(policy="h2o")
    cache = engine.open_chat([engine.read(tiny.token_ids(LONG))])
    answer(engine, cache)
    assert cache.evidence.shares.chat is None and cache.evidence.shares.question is None
    assert 0 < sum(cache.evidence.shares.documents) < 1


def test_the_local_window_is_no_evidence_until_the_chat_has_left_it():
    engine = tiny.engine()
    cache = engine.open_chat([engine.read(tiny.token_ids(100))])
    engine.stop_ids = frozenset()
    list(engine.generate(cache, [9, 8, 7], GenerationConfig(max_new_tokens=3)))
    assert cache.evidence.density[-1] == 0 < cache.evidence.density[-2]
    list(engine.generate(cache, [9] * REGION, GenerationConfig(max_new_tokens=3)))
    assert cache.evidence.density[-1] > 0


def test_a_text_as_short_as_the_window_counts_whole():
    engine = tiny.engine()
    cache = engine.open_chat([engine.read(tiny.token_ids(12))])
    engine.stop_ids = frozenset()
    list(engine.generate(cache, [9, 8, 7], GenerationConfig(max_new_tokens=2)))
    assert (cache.evidence.density > 0).all()


def test_the_sinks_of_every_memory_are_no_evidence():
    engine = tiny.engine()
    memories = [engine.read(tiny.token_ids(2)), engine.read(tiny.token_ids(SINK_TOKENS, seed=1))]
    cache = engine.open_chat(memories)
    answer(engine, cache)
    assert cache.evidence.density.abs().max() < 1e-5


def test_evidence_of_a_long_text_is_shared_out():
    engine = tiny.engine()
    cache = engine.open_chat([engine.read(tiny.token_ids(LONG)), engine.read(tiny.token_ids(LONG, seed=2))])
    said = answer(engine, cache)
    looks = cache.evidence.looks()
    assert len(looks) == len(said)
    for look in looks:
        shares = [share for _, share in look]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6
        assert len({region for region, _ in look}) == len(look)


def test_a_plain_chat_has_no_evidence():
    engine = tiny.engine()
    cache = engine.open_chat()
    assert len(answer(engine, cache)) == 5
    assert cache.evidence.looks() == [[]] * 5 and len(cache.evidence.density) == 0


@pytest.mark.parametrize("tokens", [30, LONG])
def test_a_score_is_that_of_the_answer_and_changes_nothing(tokens):
    engine, text = tiny.engine(), tiny.token_ids(tokens)
    cache = engine.open_chat([engine.read(text)])
    before, said = cache.tail.tokens, [40, 90, 200, 7]
    scores = engine.score(cache, TURN, said)
    assert cache.tail.tokens == before and torch.equal(scores, engine.score(cache, TURN, said))
    if tokens == 30:  # fits: the stock model is the truth
        with torch.inference_mode():
            logits = tiny.model()(torch.tensor([[*text, *TURN, *said]])).logits[0]
        rows = torch.log_softmax(logits[-len(said) - 1 : -1], -1)
        torch.testing.assert_close(scores, rows.gather(-1, torch.tensor(said)[:, None])[:, 0], atol=1e-5, rtol=1e-5)


def test_a_score_follows_a_turn_that_stands_already():
    engine = tiny.engine()
    cache, whole = engine.open_chat(), engine.open_chat()
    engine.forward(cache, TURN)
    torch.testing.assert_close(
        engine.score(cache, [9, 8], [7, 6]), engine.score(whole, [*TURN, 9, 8], [7, 6]), atol=1e-5, rtol=1e-5
    )
    assert cache.tail.token_ids == TURN


@pytest.mark.parametrize("tokens", [40, LONG])
def test_a_muted_region_does_not_reach_the_score(tokens):
    """Whatever stands in it, dense (40 tokens) and selecting; and unmuted it does reach it."""
    engine = tiny.engine()
    scores = {}
    for poison in (1.0, -1.0):
        memory = engine.read(tiny.token_ids(tokens))
        for layer in range(engine.shape.layers):
            poisoned = torch.full((engine.shape.kv_heads, 16, engine.shape.head_dim), poison)
            memory.pages.append(layer, 16, poisoned, poisoned)
        cache = engine.open_chat([memory])
        scores[poison, False] = engine.score(cache, TURN, [40, 90])
        cache.allow([region not in (2, 3) for region in range(memory.regions)])
        scores[poison, True] = engine.score(cache, TURN, [40, 90])
    assert torch.equal(scores[1.0, True], scores[-1.0, True])
    if tokens == 40:
        assert not torch.allclose(scores[1.0, False], scores[-1.0, False], atol=1e-3)


def test_a_fork_goes_on_by_itself():
    engine = tiny.engine()
    cache = engine.open_chat([engine.read(tiny.token_ids(40))])
    cache.allow([region != 2 for region in range(cache.base_regions)])
    engine.forward(cache, TURN)
    fork = cache.fork()
    engine.forward(fork, [5, 6])
    assert cache.tail.tokens == len(TURN) and fork.tail.tokens == len(TURN) + 2
    torch.testing.assert_close(engine.forward(cache.fork(), [5, 6]), engine.forward(cache, [5, 6]))


def test_nothing_is_lost_by_keep_all():
    engine = tiny.engine()
    cache = engine.open_chat([engine.read(tiny.token_ids(LONG)), engine.read(tiny.token_ids(40))])
    engine.forward(cache, TURN)
    counts = cache.counts()
    assert counts.pop("tokens_kept") == counts.pop("tokens_host") == LONG + 40 + len(TURN)
    names = ("compressed", "evicted", "quantized", "device", "disk", "ids", "reread")
    assert counts == {f"tokens_{name}": 0 for name in names}


def test_pieces_spell_the_text():
    engine = tiny.engine()
    ids = engine.tokenizer("Grüße, plain words", add_special_tokens=False)["input_ids"]
    pieces = engine.pieces(ids)
    assert len(pieces) == len(ids) and pieces[0] == "G" and pieces[-1] == "s"


def test_evidence_of_dropped_tokens_stands_where_they_came_from():
    """What is held of a long text is mapped back token by token; the mass is that of the slots, none of it lost."""
    engine = tiny.engine()
    text = tiny.token_ids(LONG)
    memory = engine.read(text)
    sparse = engine.read(text[:64])  # shorter, with slots that came from all over the long one
    sparse.origins, sparse.dropped = [], LONG - 64
    for _ in range(engine.shape.layers):
        places = torch.stack([torch.arange(64) * 4 + head for head in range(engine.shape.kv_heads)])
        places[:, :SINK_TOKENS] = torch.arange(SINK_TOKENS)
        sparse.origins.append(places.int())
    cache = engine.open_chat([memory, sparse])
    engine.forward(cache, TURN * 4)
    evidence = cache.watch()
    assert len(evidence.density) == 2 * memory.regions
    regions = torch.tensor([[0, memory.regions, memory.regions + 3]] * engine.shape.kv_heads)
    mass = torch.arange(1.0, 1 + regions.numel() * REGION).view(*regions.shape, REGION)
    cache.observe(0, regions[None], mass[None], rows=1, steps=1)
    evidence.take()
    expected = torch.zeros(2 * memory.regions)
    expected[0] = mass[:, 0, SINK_TOKENS:].sum() / (REGION - SINK_TOKENS)
    for head in range(engine.shape.kv_heads):
        for column, first in ((1, 0), (2, 24)):
            for i in range(REGION):
                place = int(sparse.origins[0][head, first + i])
                if place >= SINK_TOKENS:
                    length = REGION - SINK_TOKENS if place < REGION else REGION
                    expected[memory.regions + place // REGION] += mass[head, column, i] / length
    torch.testing.assert_close(evidence.density, expected)


def test_after_a_draft_an_answer_sees_what_the_draft_looked_at_and_no_more():
    engine, text = tiny.engine(), tiny.token_ids(LONG)
    by_hand = engine.open_chat([engine.read(text)])
    engine.stop_ids = frozenset()
    list(engine.segments(by_hand, TURN[:-1], None))
    draft = by_hand.fork()
    assert len(list(engine.generate(draft, TURN[-1:], GenerationConfig(max_new_tokens=5)))) == 5
    regions = range(by_hand.base_regions)
    far = torch.tensor([region > 0 for region in regions])
    kept = draft.evidence.around(5, far)  # of eight, three are attended anyway
    by_hand.allow([region == 0 or region in kept for region in regions])
    expected = list(engine.generate(by_hand, TURN[-1:], GenerationConfig(max_new_tokens=5)))

    said, cache = drafted([text])
    plain = engine.open_chat([engine.read(text)])
    assert said == expected != answer(engine, plain)
    assert len(cache.evidence.chosen.regions) == 1 + len(kept)
    assert set(kept.tolist()) < set(range(1, cache.base_regions))
    torch.testing.assert_close(cache.evidence.density, by_hand.evidence.density)
    assert cache.allowed is None  # the next question sees everything again


def test_an_answer_sees_what_words_found_beside_what_its_draft_looked_at():
    engine, text = tiny.engine(replace(tiny.SMALL, budget_tokens=128)), tiny.token_ids(LONG)
    engine.stop_ids, engine.draft_tokens, engine.lookup = frozenset(), 5, "both"
    cache, five = engine.open_chat([engine.read(text)]), GenerationConfig(max_new_tokens=5)
    said = list(engine.generate(cache, TURN, five, offered=[30, 7, 7, 31, 12]))
    chosen = cache.evidence.chosen
    assert chosen.words.tolist() == [7, 12, 30, 31] and len(chosen.attention) <= 6  # a third of 16 each, and the sinks
    assert chosen.found_by()[7] in ("words", "both") and chosen.found_by()[0] == "attention"
    assert set(chosen.regions.tolist()) <= set(chosen.found_by()) and len(chosen.regions) <= 5 + KEPT_BY_WORDS
    assert {7, 12, 30, 31} <= set(chosen.regions.tolist())  # what words found first stays, whatever the draft looked at
    among = engine.open_chat([engine.read(text)])
    among.allow([region in chosen.regions for region in range(among.base_regions)])
    engine.draft_tokens, engine.lookup = 0, "attention"
    assert said == list(engine.generate(among, TURN, five))  # the question, too, is run among them
    assert cache.tail.token_ids == among.tail.token_ids and cache.allowed is None


def test_words_alone_need_no_draft_and_see_nothing_that_is_muted():
    engine = tiny.engine()
    engine.stop_ids, engine.draft_tokens, engine.lookup = frozenset(), 5, "words"
    cache = engine.open_chat([engine.read(tiny.token_ids(LONG))])
    cache.allow([region != 7 for region in range(cache.base_regions)])
    list(engine.generate(cache, TURN, GenerationConfig(max_new_tokens=5), offered=[7, 30, 12]))
    assert cache.evidence.chosen.regions.tolist() == [0, 12, 30]
    assert cache.evidence.chosen.found_by() == {0: "attention", 12: "words", 30: "words"}
    cache = engine.open_chat([engine.read(tiny.token_ids(50))])  # all of it fits
    list(engine.generate(cache, TURN, GenerationConfig(max_new_tokens=5), offered=[3]))
    assert cache.evidence.chosen is None


def test_nothing_is_drafted_where_an_answer_sees_everything():
    engine, text = tiny.engine(), tiny.token_ids(50)
    said, cache = drafted([text])
    assert said == answer(engine, engine.open_chat([engine.read(text)])) and cache.evidence.chosen is None
    for policy in ("streaming", "full", "h2o", "infllm"):
        assert drafted([tiny.token_ids(LONG)], policy=policy)[1].evidence.chosen is None


def test_a_second_look_sees_nothing_that_is_muted():
    first, second = tiny.token_ids(LONG), tiny.token_ids(LONG, seed=1)
    regions = -(-LONG // REGION)
    _, cache = drafted([first, second], allowed=[region >= regions for region in range(2 * regions)])
    assert cache.evidence.chosen and not cache.evidence.density[1:regions].any()
    assert cache.evidence.density[regions:].any() and not cache.allowed[:regions].any()


def test_a_draft_that_is_stopped_leaves_no_half_question():
    engine, polls = tiny.engine(), []
    engine.stop_ids, engine.draft_tokens = frozenset(), 5
    cache = engine.open_chat([engine.read(tiny.token_ids(LONG))])
    steps = engine.generate(
        cache, TURN, GenerationConfig(), cancelled=lambda: polls.append(cache.tail.tokens) or len(polls) > 2
    )
    assert list(steps) == [] and cache.tail.tokens == 0 and max(polls) == len(TURN) - 1


def test_regions_are_told_with_their_neighbours_in_the_text():
    evidence = AnswerEvidence(torch.full((9,), REGION), [0, 5], SINK_TOKENS)  # two texts, of five regions and four
    for region, mass in ((4, 3.0), (7, 2.0), (1, 1.0)):
        evidence.add(torch.tensor([region]), torch.full((1, REGION), mass))
    evidence.take()
    every = torch.ones(9, dtype=torch.bool)
    assert evidence.around(9, every).tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert evidence.around(5, every).tolist() == [3, 4, 6, 7, 8]
    assert evidence.around(4, every).tolist() == [3, 4]
    every[6] = False
    assert evidence.around(4, every).tolist() == [3, 4, 7, 8]
    assert evidence.around(0, every).tolist() == evidence.around(1, every).tolist() == []
