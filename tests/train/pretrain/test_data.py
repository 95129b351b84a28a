"""Training samples: their length, what counts, and that the answers can be found."""

import json
import lzma
import random

import numpy as np
import pytest

from app.errors import InputError
from app.train.pretrain import corpus
from app.train.pretrain.data import TASKS, BookTokens

LENGTHS = [64, 256, 2048]
SEEDS = range(10)


def draw(maker, task, tokens, seed):
    return maker.draw(random.Random(seed), tokens, {task: 1.0})


def turns(maker, sample):
    """(document, [(question, answer, weights of the answer), ...]) of a sample, cut at its markers."""
    ids, weights = sample.token_ids.tolist(), sample.weights.tolist()
    starts = [i for i, id in enumerate(ids) if id == maker.user]
    found = []
    for start in starts:
        middle = ids.index(maker.assistant, start)
        end = ids.index(maker.end, middle)
        question, answer = maker.decode(ids[start + 1 : middle]), maker.decode(ids[middle + 1 : end])
        found.append((question, answer, weights[middle + 1 : end + 1]))
    return maker.decode(ids[1 : starts[0]]), found


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("task", TASKS)
def test_samples_have_exactly_the_length(maker, task, tokens):
    for seed in SEEDS:
        sample = draw(maker, task, tokens, seed)
        assert sample.token_ids.shape == sample.weights.shape == (tokens,)
        assert sample.token_ids.dtype == np.int64 and sample.weights.dtype == np.float32
        assert sample.token_ids[0] == maker.bos
        assert 0 <= sample.token_ids.min() and sample.token_ids.max() < 8192
        assert sample.weights.min() >= 0 and sample.weights.max() > 0
        assert (sample.weights[sample.token_ids == maker.pad] == 0).all()


def test_samples_depend_on_the_seed_alone(maker):
    shares = dict.fromkeys(TASKS, 1.0)
    first, again, other = (
        [maker.draw(rng, 256, shares) for _ in range(8)] for rng in map(random.Random, ("0-5", "0-5", "0-6"))
    )
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("task", "tokens"),
    [("passkey", n) for n in LENGTHS] + [("records", n) for n in LENGTHS[1:]],  # at 64 tokens records are cut
)
def test_answers_stand_in_the_document(maker, task, tokens):
    for seed in SEEDS:
        document, asked = turns(maker, draw(maker, task, tokens, seed))
        assert asked
        for question, answer, _ in asked:
            fact = answer.rstrip(".")  # "The pass key for amber is 12345"
            assert document.count(f"{fact}.") == 1
            assert question == f"What is {fact[0].lower()}{fact[1:].rpartition(' is ')[0]}?"


@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_recalled_line_stands_in_the_document(maker, tokens):
    for seed in SEEDS:
        document, ((question, answer, weights),) = turns(maker, draw(maker, "recall", tokens, seed))
        assert question.startswith("Continue: ")
        assert question.removeprefix("Continue: ") + answer in document
        assert set(weights) == {4.0}


def test_answers_weigh_most_and_questions_little(maker):
    for seed in SEEDS:
        sample = draw(maker, "passkey", 256, seed)
        _, asked = turns(maker, sample)
        assert all(set(weights) == {8.0} for _, _, weights in asked)
        start = sample.token_ids.tolist().index(maker.user)
        assert sample.weights[:start].max() <= 1.0
        answers = sum(len(weights) for _, _, weights in asked)
        assert (sample.weights == 8.0).sum() == answers
        assert (sample.weights[sample.token_ids == maker.assistant] == 0).all()


def test_turns_look_as_in_the_app(maker, tokenizer):
    """What the model is trained on is what the chat template makes."""
    for seed in SEEDS:
        sample = draw(maker, "passkey", 256, seed)
        _, asked = turns(maker, sample)
        messages = [
            {"role": role, "content": text}
            for question, answer, _ in asked
            for role, text in (("user", question), ("assistant", answer))
        ]
        expected = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(sample.token_ids[sample.token_ids != maker.pad]).endswith(expected)


def test_questions_come_with_their_passage(maker):
    for seed in SEEDS:
        document, asked = turns(maker, draw(maker, "questions", 256, seed))
        assert "grey cat" in document
        assert {(question, answer) for question, answer, _ in asked} == {
            ("What is the cat called?", " Tom")
        }  # with the tokens of the text


def test_one_question_is_not_answered_by_the_text(maker):
    without = 0
    for seed in range(60):
        document, asked = turns(maker, draw(maker, "missing", 256, seed))
        wanted = {"What is the cat called?": " Tom", "Who is the king?": corpus.NO_ANSWER}
        there = "grey cat" in document
        assert all(answer == (wanted[question] if there else corpus.NO_ANSWER) for question, answer, _ in asked)
        assert sum(answer == corpus.NO_ANSWER for _, answer, _ in asked) == 1
        without += not there
    assert 5 < without < 55


def test_lookups_are_answered_by_the_text(maker):
    kinds = set()
    for seed in SEEDS:
        sample = draw(maker, "lookup", 512, seed)
        if maker.user in sample.token_ids:
            document, asked = turns(maker, sample)
            assert all(" ".join(answer.split()) in " ".join(document.split()) for _, answer, _ in asked)
            kinds |= {question.split()[0] for question, _, _ in asked}
    assert len(kinds) > 2


def test_an_inverse_cloze_is_answered_by_the_text(maker):
    asked_in_all = 0
    for seed in SEEDS:
        document, asked = turns(maker, draw(maker, "inverse_cloze", 512, seed))
        asked_in_all += len(asked)
        assert all(answer.lstrip() in " ".join(document.split()) for _, answer, _ in asked)
    assert asked_in_all > len(SEEDS)


def test_a_story_gives_a_passage_for_each_choice_of_sections(data):
    entry = {
        "text": "One.\nTwo.\nThree.",
        "sections": [{"n": n, "text": text} for n, text in enumerate(("One.", "Two.", "Three."), 1)],
        "qas": [{"question": f"About {n}?", "answers": [n], "sections": n} for n in ("2", "1,3", "2")],
    }
    with lzma.open(data / "qa" / "stories.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    found = {p.text: [q.answer for q in p.questions] for p in corpus.passages(data, ("stories",))}
    assert found == {"Two.": ["2", "2"], "One.\nThree.": ["1,3"]}


def test_half_of_the_passkeys_repeat_digits(maker):
    answers = [a for seed in range(60) for _, a, _ in turns(maker, draw(maker, "passkey", 512, seed))[1]]
    few = sum(len(set(filter(str.isdigit, answer))) <= 3 for answer in answers)
    assert 0.4 < few / len(answers) < 0.85


def test_copies_are_copies(maker):
    for seed in SEEDS:
        sample = draw(maker, "copying", 256, seed)
        ids = sample.token_ids[1:].tolist()
        runs = [n for n in range(4, 129) if ids[n:] == ids[:-n]]
        assert runs
        assert (sample.weights[1 + runs[0] :] == 1.0).all()


def test_books_are_tokenised_once(data, tokenizer, tmp_path, monkeypatch):
    first = BookTokens(data, "valid", tokenizer, tmp_path)
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *args, **kwargs: pytest.fail("tokenised again"))
    assert np.array_equal(first.ids, BookTokens(data, "valid", tokenizer, tmp_path).ids)
    (book,) = corpus.books(data, "valid")
    assert tokenizer.decode(first.ids.tolist()) == book.text


def test_excerpts_begin_at_a_line_where_one_is_near(maker):
    books, rng = maker.books, random.Random(0)
    windows = np.lib.stride_tricks.sliding_window_view(books.ids, 100)
    for _ in range(20):
        ids = books.excerpt(rng, 100)
        (place,) = np.flatnonzero((windows == ids).all(1))
        near = books.ids[place : place + 200]
        assert books.ends_line[books.ids[place - 1]] or not books.ends_line[near].any()


def test_a_split_without_books_is_refused(data, tokenizer, tmp_path):
    with pytest.raises(InputError, match="no book of the split test"):
        BookTokens(data, "test", tokenizer, tmp_path)


def test_the_corpus_reads_answers_and_code(data):
    (passage, *_) = corpus.passages(data)
    assert [q.answer for q in passage.questions] == ["Tom", corpus.NO_ANSWER]
    assert list(corpus.code_files(data)) == ["def one():\n    return 1\n"]


def test_what_is_held_back_is_not_trained_on(data, tmp_path):
    """By documents, by runs of twelve words, and with a clear message where a file is damaged."""
    story = "One two three four five six seven eight nine ten eleven twelve thirteen."
    titles = [f"Title {i}" for i in range(200)]
    back = [t for t in titles if corpus.is_held_back({"title": t, "text": "x"})]
    assert 4 <= len(back) <= 25  # one in sixteen
    kept = next(t for t in titles if t not in back)
    (tmp_path / "qa").mkdir()
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "index.tsv").write_text("file\tsplit\n")
    asked = [{"question": "What comes first?", "answers": ["one"]}]
    entries = [
        {"title": back[0], "text": story, "qas": asked},
        {"title": kept, "text": f"It begins: {story}", "qas": asked},
        {"title": kept, "text": "Something else altogether.", "qas": asked},
    ]
    for name, lines in (("set", entries), ("fairytaleqa_valid", entries[2:])):
        with lzma.open(tmp_path / "qa" / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    sets = ("set",)
    assert [p.text for p in corpus.passages(tmp_path, sets, "valid")] == [story, "Something else altogether."]
    apart = corpus.held_back(tmp_path, sets)
    texts = [p.text for p in corpus.passages(tmp_path, sets)]
    assert texts == [f"It begins: {story}", "Something else altogether."]
    assert not [t for t in texts if not apart.shares(t)]  # the first shares a run, the second is for validation too
    (tmp_path / "qa" / "set.jsonl.xz").write_bytes(lzma.compress(b'{"text": "a", "qas": []}\n[1]\n'))
    with pytest.raises(InputError, match=r"set.jsonl.xz, line 2: cannot be read as packed JSON lines: no object"):
        list(corpus.passages(tmp_path, sets))


def test_books_leave_out_what_is_held_back(data, tokenizer, tmp_path):
    (book,) = corpus.books(data, "train")
    seen = corpus.Seen()
    paragraphs = [p for p in book.text.split("\n\n") if len(p.split()) > 40]
    seen.add(paragraphs[3])
    text = tokenizer.decode(BookTokens(data, "train", tokenizer, tmp_path, seen).ids.tolist())
    assert paragraphs[3] not in text and paragraphs[4] in text and paragraphs[2] in text


def test_of_records_the_names_come_first_and_then_their_number(maker):
    for seed in SEEDS:
        document, asked = turns(maker, draw(maker, "counting", 512, seed))
        for question, answer, _ in asked:
            value = question.removeprefix("How many have the home ").rstrip("?")
            names, _, count = answer.rstrip(".").rpartition(": ")
            found = [line.split()[4 - 1] for line in document.splitlines() if line.endswith(f" is {value}.")]
            assert names == ", ".join(found) and int(count) == len(found)
