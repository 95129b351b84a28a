"""Questions about whole novels whose answer stands in one sentence: is it in the answer, and is the sentence shown?

    python benchmarks/novels.py --books-folder BOOKS --model MODEL --home FOLDER
    python benchmarks/novels.py --books-folder BOOKS --books 2 --questions 4 --tokens 65536
    python benchmarks/novels.py --books-folder BOOKS --only words     # passages by words alone: no model

The questions lie in fixtures/novels.jsonl; the books are those of a folder of packed texts. A novel is read once,
through the app itself, into a data folder that stays; what is answered stays in the work folder, one part for each
novel and way.
"""

import argparse
import hashlib
import json
import lzma
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.errors import InputError
from app.eval import report, texts
from app.records import Done
from app.settings import Settings
from app.store.store import Store
from app.store.text import question_query
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.chat import DocumentChat

FIXTURE = Path(__file__).parent / "fixtures" / "novels.jsonl"
ANSWER_TOKENS = 40
SHOWN = 3  # passages that count
PASTED = 8  # passages that an app without a memory puts into its prompt
WINDOW, LEFT = 8192, 256  # tokens of a window, and of it for question and answer
READ_S, ANSWERED_S = 1 / 300, 8.0  # seconds a token and an answer, 135 M parameters on one core
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBERS = {word: n for n, word in enumerate(SMALL)} | {word: 10 * n for n, word in enumerate(TENS, start=2)}
OURS, RIVALS = ("both", "attention", "words-only"), ("pasted", "cut")
WAYS = ("words", *OURS, *RIVALS)


@dataclass(frozen=True)
class Question:
    """A question of the fixture: its answer stands in the sentence [start, end) of a book's text, of this digest."""

    id: str
    book: str
    question: str
    answers: tuple[str, ...]
    start: int
    end: int
    sha256: str


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    names = ("books_folder", "books", "questions", "tokens")
    settings = {name: getattr(args, name) for name in names} | {
        "asked": hashlib.sha256(args.fixture.read_bytes()).hexdigest()[:16],
    }
    benchmark = Benchmark("novels", settings, _parts(args), _table, _finish, details=("answered",))
    return harness.main(benchmark, args)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__ or "", "novels")
    parser.add_argument("--books-folder", type=Path, required=True, metavar="FOLDER", help="texts packed as .xz")
    parser.add_argument("--fixture", type=Path, default=FIXTURE, metavar="FILE", help="other questions")
    parser.add_argument("--home", type=Path, help="data folder that keeps what was read (in the work folder)")
    parser.add_argument("--books", type=int, metavar="N", help="the first N novels")
    parser.add_argument("--questions", type=int, metavar="N", help="the first N of each")
    parser.add_argument("--tokens", type=int, default=0, metavar="N", help="only the first N tokens of each; 0: all")
    args = parser.parse_args(argv)
    args.home = args.home or args.work / "novels-home"
    return args


def load(fixture: Path, books: int | None, questions: int | None) -> dict[str, list[Question]]:
    """The questions by book."""
    found: dict[str, list[Question]] = {}
    for line in fixture.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        here = found.setdefault(values["book"], [])
        here.append(Question(answers=tuple(values["answers"]), **{n: values[n] for n in _PLAIN}))
    return {book: here[:questions] for book, here in list(found.items())[:books]}


_PLAIN = ("id", "book", "question", "start", "end", "sha256")


@cache
def _book(path: Path, tokens: int) -> str:
    """A book's text, or its beginning of about so many tokens, to the end of a paragraph."""
    try:
        text = lzma.open(path, "rt", encoding="utf-8", newline="").read()
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as packed text: {error}") from error
    end = text.rfind("\n\n", 0, 4 * tokens) if tokens and 4 * tokens < len(text) else len(text)
    return text[:end]


def _parts(args: argparse.Namespace) -> list[Part]:
    parts = []
    for number, (book, questions) in enumerate(load(args.fixture, args.books, args.questions).items()):
        text = partial(_book, args.books_folder / book, args.tokens)
        for way in WAYS:
            tokens = {"words": 0, "both": 150_000, "pasted": 2500 * len(questions), "cut": WINDOW}.get(way, 0)
            seconds = tokens * READ_S + (len(questions) * ANSWERED_S if way != "words" else 1)
            parts.append(Part(f"{way}-{number + 1}", seconds, partial(_ask, args, way, book, text, questions)))
    return sorted(parts, key=lambda part: WAYS.index(part.name.rpartition("-")[0]))


def _ask(args: argparse.Namespace, way: str, book: str, text: Any, questions: Sequence[Question]) -> Values:
    """The answers of one way about one book, to the questions whose sentence is read."""
    whole = text()
    here = [q for q in questions if q.end <= len(whole)]
    for q in here:
        if not hashlib.sha256(whole[q.start : q.end].encode()).hexdigest().startswith(q.sha256):
            raise InputError(f"{book}: question {q.id} is about another edition; take the book that the fixture names")
    return {"way": way, "book": book, "answered": [*_answers(args, way, book, whole, here)]}


def _answers(
    args: argparse.Namespace, way: str, book: str, text: str, questions: Sequence[Question]
) -> Iterator[Values]:
    name = f"{book.partition('.')[0]}.txt"
    if way == "words":
        with _library(name, text) as (store, id):
            for q in questions:
                yield {"id": q.id, "rank": _rank(q, text, store, id, store.find_passages(_query(q), [id], 50))}
    elif way in OURS:
        yield from _read_and_asked(args, way, name, text, questions)
    else:
        engine = _engine(args)
        if way == "cut":
            engine = engine.under(_full())
            memory = engine.read(texts.encode(engine, text[: 5 * WINDOW])[: WINDOW - LEFT])
            for q in questions:
                yield _scored(q, texts.answer(engine, memory, q.question, ANSWER_TOKENS))
            return
        with _library(name, text) as (store, id):
            for q in questions:
                found = store.find_passages(_query(q), [id], PASTED)
                pasted = "\n\n".join(store.part(id, f.part).text[f.char_start : f.char_end].strip() for f in found)
                memory = engine.read(texts.encode(engine, pasted))
                yield _scored(q, texts.answer(engine, memory, q.question, ANSWER_TOKENS))


def _query(question: Question) -> str | None:
    return question_query(question.question)


@cache
def _loaded(model: str, device: str | None, threads: int) -> Any:
    return harness.engine(argparse.Namespace(model=model, device=device, threads=threads))


def _engine(args: argparse.Namespace) -> Any:
    return _loaded(args.model, args.device, args.threads)


def _full() -> Any:
    from app.runtime import policies

    return policies.named("full")


@contextmanager
def _library(name: str, text: str) -> Iterator[tuple[Store, str]]:
    """A library that holds one text and its passages."""
    from app.ingest.load import load_document

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8", newline="")
        store = Store(Path(folder) / "home", disk_budget_bytes=1 << 30)
        try:
            id = store.add_document(load_document(path))
            store.index_passages(id)
            yield store, id
        finally:
            store.close()


def _read_and_asked(
    args: argparse.Namespace, way: str, name: str, text: str, questions: Sequence[Question]
) -> Iterator[Values]:
    """Through the app: the book is read once into the data folder, each question has a chat of its own."""
    from app.chat import DocumentChat
    from app.memory.config import GenerationConfig

    engine = _engine(args)
    engine.lookup = {"words-only": "words"}.get(way, way)
    engine.draft_tokens = engine.draft_tokens or 16
    chat = DocumentChat.open(Settings(home=args.home, model=args.model), engine=engine)
    try:
        id = _read(chat, name, text)
        told = harness.progress(f"{name}, {way}")
        for number, q in enumerate(questions, start=1):
            *_, done = chat.ask(q.question, documents=[id], generation=GenerationConfig(max_new_tokens=ANSWER_TOKENS))
            assert isinstance(done, Done)
            chat.saved.delete_chat(done.chat)
            shown = {"seconds": done.stats.seconds, "first_s": done.stats.seconds_to_first_token}
            shown |= {"rank": _rank(q, text, chat.store, id, done.evidence), "among": done.stats.second_look}
            shown |= {"found_by": [item.found_by for item in done.evidence]}
            told(number, len(questions))
            yield _scored(q, done.answer) | shown
    finally:
        chat.close()


def _read(chat: "DocumentChat", name: str, text: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8", newline="")
        id = chat.library.add_document(path).id
    if chat.store.suggestions(id, chat.model.engine().recipe) is None:
        chat.store.set_suggestions(id, chat.model.engine().recipe, [])  # trying some is not measured here
    told, started = harness.progress(name), time.monotonic()
    for event in chat.read(id):
        told(event.tokens_done, event.tokens_total)
    print(f"{name}: read in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return id


def right(answer: str, answers: Sequence[str]) -> bool:
    """Whether an answer has the words of a right one in it, side by side; numbers in words or digits."""
    said = f" {_words(answer)} "
    return any(f" {_words(gold)} " in said for gold in answers)


def _words(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower().replace(",", ""))
    tens, found = 0, []
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        number = NUMBERS.get(word)
        if number is not None and number >= 20 and 0 < NUMBERS.get(after, 0) < 10:
            tens = number
            continue
        found.append(word if number is None else str(tens + number))
        tens = 0
    return " ".join(found)


def _scored(question: Question, answer: str) -> Values:
    return {"id": question.id, "answer": answer[:300], "right": right(answer, question.answers)}


def _rank(question: Question, text: str, store: Store, id: str, passages: Sequence[Any]) -> int | None:
    """Place, from 1, of the first passage that has the middle of the answer's sentence in it."""
    part, char = _place(tuple((p.index, p.text) for p in store.parts(id)), text[question.start : question.end])
    for number, passage in enumerate(passages, start=1):
        if passage.part == part and passage.char_start <= char < passage.char_end:
            return number
    return None


def _place(parts: tuple[tuple[int, str], ...], sentence: str) -> tuple[int, int]:
    """The part that holds a sentence and the sentence's middle in it; ingestion may have changed its blanks.

    Raises:
        InputError: no part holds it whole.
    """
    pattern = re.compile(r"\s+".join(map(re.escape, sentence.split())))
    for index, text in parts:
        if found := pattern.search(text):
            return index, (found.start() + found.end()) // 2
    raise InputError(f"{sentence[:60]!r}: not in any one part of the text")


def _rows(parts: Mapping[str, Values]) -> dict[str, list[Values]]:
    rows: dict[str, list[Values]] = {}
    for part in parts.values():
        rows.setdefault(part["way"], []).extend(part["answered"])
    return rows


def _counts(answered: Sequence[Values]) -> Values:
    """How many were asked, right and shown; with answers of which the first passages have the sentence."""
    ranks = [a["rank"] for a in answered if "rank" in a]
    values: Values = {"asked": len(answered)}
    if any("right" in a for a in answered):
        values["right"] = sum(a["right"] for a in answered)
        values["right_at_least"] = round(report.lower_bound_95(values["right"], len(answered)), 4)
    if ranks:
        values |= {f"shown_{n}": sum(rank is not None and rank <= n for rank in ranks) for n in (1, SHOWN, PASTED)}
    if any("seconds" in a for a in answered):
        values["seconds"] = round(sum(a["seconds"] for a in answered) / len(answered), 2)
    return values


def _finish(parts: Mapping[str, Values]) -> Values:
    rows = {way: _counts(answered) for way, answered in _rows(parts).items()}
    return {"ways": rows, "misses": _misses(_rows(parts).get("both", ()))}


def _misses(answered: Sequence[Values]) -> list[Values]:
    return [{name: a[name] for name in ("id", "answer", "rank")} for a in answered if not a["right"]][:30]


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    names = ["asked", "right", "shown_1", f"shown_{SHOWN}", f"shown_{PASTED}", "seconds"]
    rows = [[way, *(_counts(answered).get(name) for name in names)] for way, answered in _rows(parts).items()]
    return ["way", *names], rows


if __name__ == "__main__":
    sys.exit(main())
