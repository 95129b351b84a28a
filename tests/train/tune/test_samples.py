"""Long-context samples: every answer stands where the file says, at the depth and length asked for, and none twice."""

import json
import lzma
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigError, InputError
from app.ingest.codebase import load_codebase
from app.tasks.questions import CODE_KINDS, PROSE_KINDS, flat
from app.train.pretrain.corpus import NO_ANSWER, Seen, runs
from app.train.tune.contexts import Book, Shelf
from app.train.tune.instructions import parse
from app.train.tune.packing import Encoder
from app.train.tune.sample_file import CHAT_OPENING, KINDS, LAYOUTS, SampleConfig, laid_out, write
from app.train.tune.samples import is_absent, make, read_books

ROOT = Path(__file__).resolve().parents[3]
CONFIG = SampleConfig(count=20, lengths=(768, 1536), validation=0.2)


@pytest.fixture(scope="module")
def book() -> Book:
    return Book("Black Beauty", (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def code() -> Book:
    parts = load_codebase(ROOT / "app" / "store", "store").parts
    return Book("store", "".join(part.text for part in parts))


@pytest.fixture(scope="module")
def made(book, tokenizer):
    return make([book], tokenizer, CONFIG)


def sides(made) -> list:
    return made.training + made.validation


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_answer_stands_at_its_place_in_the_file(made, tokenizer, tmp_path, layout):
    """Read back from the file alone: characters and tokens of every answer, and what training will learn of it."""
    path = tmp_path / "made.jsonl"
    write(sides(made), path, layout, "training")
    text = path.read_text(encoding="utf-8")
    entries, empty = parse(text, "made.jsonl")
    assert empty == 0 and len(entries) == len(sides(made))
    for line, entry, sample in zip(text.splitlines(), entries, sides(made), strict=True):
        item = json.loads(line)
        where = item["document"] if layout == "app" else item["messages"][0]["content"]
        document = item["document"] if layout == "app" else where[len(CHAT_OPENING) :]
        tokens = tokenizer(sample.document, add_special_tokens=False)["input_ids"]
        assert document.startswith(sample.document)
        for facts, answer in zip(item["meta"]["questions"], item["messages"][1::2], strict=True):
            if facts["kind"] == "absent":
                assert answer["content"] == NO_ANSWER and facts["answer_chars"] is None
                continue
            there = flat(where[slice(*facts["answer_chars"])])
            spelled = flat(tokenizer.decode(tokens[slice(*facts["answer_tokens"])]))
            assert there in spelled and len(spelled) < len(there) + 25
            assert abs(facts["depth"] - (where.index(sample.document[:200]) * -1 + facts["answer_chars"][0]) / len(
                sample.document
            )) < 0.001  # fmt: skip
            _answers(facts, there, answer["content"], where)
        encoded = Encoder(tokenizer)(entry)
        learnt = tokenizer.decode(encoded.token_ids[encoded.weights == 1.0])
        assert learnt == "".join(f"{answer['content']}<|end|>" for answer in item["messages"][1::2])
        assert layout == "chat" or len(encoded.token_ids) == item["meta"]["tokens"] == sample.tokens


def _answers(facts: dict, there: str, answer: str, where: str) -> None:
    """The answer is what stands there, or made of what stands there."""
    if facts["kind"] == "count":
        assert int(answer) == 1 + len(facts["evidence"])
    elif facts["kind"] == "contents":
        assert answer.split("\n") == [there, *(flat(where[slice(*place)]) for place in facts["evidence"])]
    elif facts["kind"] == "several":
        wanted = [line.partition(". ")[2] for line in answer.split("\n")]
        assert wanted[0] == there
        assert wanted[1:] == [flat(where[slice(*place)]) for place in facts["evidence"][: len(wanted) - 1]]
    else:
        assert answer == there


def test_lengths_and_depths_are_those_asked_for(made, book, tokenizer):
    assert len(made.training) == 16 and len(made.validation) == 4 and made.short == 0
    for number, sample in enumerate(made.training):
        assert 0.75 * CONFIG.lengths[number % 2] < sample.tokens <= CONFIG.lengths[number % 2]
        assert 1 <= len(sample.turns) <= 3
    assert min(made.depths()) > 0.1 * sum(made.depths())
    late = make([book], tokenizer, SampleConfig(count=6, lengths=(2048,), depths=(0.9,), kinds=("cloze", "continue")))
    found = [q.start / len(s.document) for s in late.training for q in s.turns]
    assert len(found) == 18 and sum(depth > 0.7 for depth in found) > 15


def test_all_kinds_come_and_none_outweighs(made):
    assert {"cloze", "several", "absent", "count", "who_said", "quote", "next_sentence", "number"} <= set(made.kinds)
    assert max(made.kinds.values()) < 0.2 * sum(made.kinds.values())


def test_nothing_is_asked_twice_and_no_answer_given_away(made):
    seen = Seen()
    for sample in sides(made):
        for q in sample.turns:
            assert not seen.shares(f"{q.question} {q.answer}")
            seen.add(f"{q.question} {q.answer}")
        places = [(q.start, q.end) for q in sample.turns if q.start >= 0]
        places += [place for q in sample.turns for place in q.places]
        others = Counter(place for place in places)
        assert max(others.values()) == 1


def test_training_shares_no_run_of_words_with_validation(made, book, tokenizer):
    kept = {run for sample in made.validation for run in runs(sample.document)}
    assert kept and not kept & {run for sample in made.training for run in runs(sample.document)}
    again = replace(book, text=book.text + "\n\nThe end.\n\n" + book.text)  # both sides hold everything
    with_copy = make([again], tokenizer, SampleConfig(count=6, lengths=(512,), validation=0.5))
    kept = {run for sample in with_copy.validation for run in runs(sample.document)}
    assert not kept & {run for sample in with_copy.training for run in runs(sample.document)}


def test_what_is_not_in_the_text_is_nowhere_in_it(made):
    absent = [(s, q) for s in sides(made) for q in s.turns if q.kind == "absent"]
    assert absent
    for sample, question in absent:
        assert is_absent(question, flat(sample.document))
        if '"' in question.question and "____" not in question.question:
            assert question.question.split('"')[1].rstrip(" .") not in flat(sample.document)
    present = next(q for s in made.training for q in s.turns if q.kind in ("continue", "quote", "next_sentence"))
    assert not is_absent(present, flat(next(s for s in made.training if present in s.turns).document))


def test_code_gives_code_questions(code, tokenizer):
    made = make([code], tokenizer, SampleConfig(count=8, lengths=(1024,)))
    asked = [kind for kind in made.kinds if kind in CODE_KINDS]
    assert len(asked) >= 5  # a stretch that is one long docstring is prose
    assert sum(made.kinds[kind] for kind in (*asked, "several", "absent")) > 0.8 * sum(made.kinds.values())
    for sample in made.training:
        for q in sample.turns:
            if q.kind in CODE_KINDS:
                assert flat(sample.document[q.start : q.end]) == flat(q.answer)


def test_short_documents_are_put_together(tokenizer, book):
    text = book.text
    pieces = [Book(f"part {i}", text[i * 3000 : i * 3000 + 2500]) for i in range(12)]
    made = make(pieces, tokenizer, SampleConfig(count=3, lengths=(4096,)))
    assert all(" + " in sample.source and sample.tokens > 3000 for sample in made.training)
    alone = make(pieces[:1], tokenizer, SampleConfig(count=2, lengths=(4096,)))
    assert alone.short == len(alone.training) > 0


def test_a_length_counts_the_layout(book, tokenizer):
    config = SampleConfig(count=6, lengths=(600,), layout="chat")
    for sample in make([book], tokenizer, config).training:
        entry = laid_out(sample.source, sample.document, sample.turns, "chat")
        assert len(Encoder(tokenizer)(entry).token_ids) == sample.tokens <= 600


def test_samples_depend_on_the_seed_alone(book, tokenizer):
    config = SampleConfig(count=3, lengths=(512,), validation=0.34)
    first, again, other = (make([book], tokenizer, replace(config, seed=seed)) for seed in (1, 1, 2))
    assert sides(first) == sides(again) != sides(other)


def test_a_stretch_has_the_length_asked_for(book, code, tokenizer):
    import random

    shelf = Shelf([book, code], Encoder(tokenizer).plain)
    for seed in range(30):
        rng = random.Random(seed)
        number, first, end = shelf.draw(rng, 700)
        text = shelf.books[number].text
        assert 350 <= shelf.length(text[first:end]) <= 701
        assert first == 0 or text[first - 1].isspace()


def test_documents_of_any_kind_are_read(tmp_path):
    with lzma.open(tmp_path / "tale.txt.xz", "wt", encoding="utf-8") as file:
        file.write("A tale.\n")
    (tmp_path / "books").mkdir()
    for name in ("a.txt", "b.md"):
        (tmp_path / "books" / name).write_text(f"The tale of {name}.\n", encoding="utf-8")
    found = read_books([tmp_path / "tale.txt.xz", tmp_path / "books", ROOT / "app" / "store"])
    assert [b.name for b in found] == ["tale.txt.xz", "a.txt", "b.md", "store"]
    assert "blocks.py (Python)" in found[3].text
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="holds instructions"):
        read_books([asked])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "give at least 1"),
        ({"turns": 0}, "give at least 1"),
        ({"lengths": (100,)}, "at least 256"),
        ({"depths": (1.5,)}, "from 0"),
        ({"depths": ()}, "from 0"),
        ({"kinds": ("riddle",)}, "riddle: not known; choose from who_said"),
        ({"kinds": ()}, "none: not known"),
        ({"layout": "poster"}, "choose app or chat"),
        ({"validation": 1.0}, "from 0 to below 1"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SampleConfig(**options)


def test_documents_without_questions_are_refused(tokenizer):
    with pytest.raises(InputError, match="a: no question of the kinds constant could be made for training"):
        make([Book("a", "One. Two. Three.\n")], tokenizer, SampleConfig(count=2, kinds=("constant",)))


def test_documents_too_short_for_validation_are_refused(book, tokenizer):
    with pytest.raises(InputError, match="tiny: too short to keep 0.5"):
        make([Book("tiny", "Short. Text.\n")], tokenizer, SampleConfig(count=4, validation=0.5))
    ends_dull = Book("dull", book.text[:40_000] + "\n\n" + "No word here\n\n" * 2_000)
    with pytest.raises(InputError, match="dull: no question could be made for validation"):
        make([ends_dull], tokenizer, SampleConfig(count=4, lengths=(512,), validation=0.25))


def test_making_ends_when_nothing_new_is_left_to_ask(book, tokenizer):
    made = make(
        [Book("short", book.text[:6_000])], tokenizer, SampleConfig(count=500, lengths=(512,), kinds=("cloze",))
    )
    assert 0 < len(made.training) < 100
    assert made.dropped["samples that were not tried, as no new question was found"] > 300


def test_a_file_appears_whole_or_not_at_all(made, tmp_path, monkeypatch):
    path = tmp_path / "new" / "made.jsonl.xz"
    write(made.validation, path, "app", "validation")
    lines = lzma.open(path, "rt", encoding="utf-8").read().splitlines()
    assert len(lines) == 4 and json.loads(lines[0])["meta"]["split"] == "validation"
    before = path.read_bytes()
    broken = [made.training[0], None]
    with pytest.raises(AttributeError):
        write(broken, path, "app", "training")
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(InputError, match="cannot be written"):
        write(made.validation, path / "below", "app", "training")


def test_every_kind_is_in_the_docs():
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in text for kind in KINDS)
    assert set(PROSE_KINDS) | set(CODE_KINDS) < set(KINDS)
