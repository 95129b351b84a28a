"""Looking up by words in memories that are in no library."""

from app.eval import qa
from app.eval.texts import WordIndex, word_index
from app.eval.qa import Question
from tests import tiny

FILLER = "nothing much was said that day. " * 20
FACT = "Captain Orlov sailed for Malta."


def test_the_regions_of_the_passage_with_the_words_are_offered():
    engine = tiny.engine()
    ids = [1, *engine.text_tokenizer.encode(FILLER + FACT + FILLER, add_special_tokens=False).ids]
    memories = [engine.read(tiny.token_ids(100)), engine.read(ids)]
    found = WordIndex(engine, memories).offered("Who sailed to Malta?")
    place = memories[0].regions + (1 + len(FILLER)) // tiny.SMALL.region_tokens
    assert place in found and len(found) <= 64 and found == list(range(found[0], found[-1] + 1))
    assert WordIndex(engine, memories).offered("Why?") == []


def test_questions_are_looked_up_as_the_engine_says(monkeypatch):
    engine = tiny.engine()
    engine.draft_tokens = 2
    memory = engine.read([1, *engine.text_tokenizer.encode(FILLER + FACT, add_special_tokens=False).ids])
    question = Question("q", "t", FACT, "Who sailed to Malta?", ("Orlov",))
    offered, generate = [], engine.generate
    monkeypatch.setattr(qa, "ANSWER_TOKENS", 3)
    monkeypatch.setattr(
        engine, "generate", lambda *args, **more: (offered.append(list(more["offered"])), generate(*args, **more))[1]
    )
    assert word_index(engine, [memory]) is None
    list(qa.ask(engine, memory, [question]))
    engine.lookup = "both"
    list(qa.ask(engine, memory, [question]))
    assert offered[0] == [] and offered[1]
