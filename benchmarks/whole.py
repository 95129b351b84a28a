"""Questions about whole texts: counts of names planted 5 to 40 times, chapters and functions known by program.

    python benchmarks/whole.py --model MODEL --book BOOK --book BOOK --code ARCHIVE --code ARCHIVE

Each text gets names that stand nowhere in it, each at places of its own. They are asked for through the app, which goes
through the text by program; recall and precision are of the places that it names. Beside it, on the same weights, the
count is asked of the model three ways: of a plain answer over the memory of the text (its first `--tokens`), of the
eight passages that BM25 finds, and of the text cut to the model's trained length.
"""

import argparse
import lzma
import random
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.tasks.questions.code import Code
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.chat import DocumentChat
    from app.runtime.engine import Engine

NAMES = ("Quillfeather", "Oakhurst Brindle", "Maravel Tunn", "Sedgewick Pole", "Ysolde Carr")
COUNTS = (5, 9, 17, 28, 40)
ANSWER_TOKENS, PASSAGES = 24, 8
SENTENCE, COMMENT = "It was then that {name} was seen again.", "# asked for by {name}"
NUMBERS = "none one two three four five six seven eight nine ten eleven twelve".split()


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    seconds = 30 + harness.reading_s(args.tokens) + 4 * len(NAMES) * harness.ANSWER_S
    names = ("book", "code", "tokens", "rivals", "seed", "device")
    parts = [Part(f"book-{n}", seconds, partial(_book, args, path, n)) for n, path in enumerate(args.book)]
    parts += [Part(f"code-{n}", seconds, partial(_code, args, path, n)) for n, path in enumerate(args.code)]
    settings = {name: [str(p.name) for p in v] if isinstance(v := getattr(args, name), list) else v for name in names}
    check = partial(harness.same_as_transformers, args)
    return harness.main(Benchmark("whole", settings, parts, _table, _finish, check=check), args)


def _book(args: argparse.Namespace, path: Path, number: int) -> Values:
    """Names planted between the paragraphs of a book."""
    read = lzma.open if path.suffix == ".xz" else open
    with read(path, "rt", encoding="utf-8") as file:
        paragraphs = re.split(r"\n\s*\n", file.read())
    rng = random.Random(f"{args.seed}-book-{number}")
    for name, count in zip(NAMES, COUNTS, strict=True):
        for at in sorted(rng.sample(range(1, len(paragraphs)), count), reverse=True):
            paragraphs[at] += " " + SENTENCE.format(name=name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "planted.txt"
        file.write_text("\n\n".join(paragraphs), encoding="utf-8")
        return _asked(args, file)


def _code(args: argparse.Namespace, path: Path, number: int) -> Values:
    """Names planted as comments between the lines of the Python files of a repository."""
    import shutil

    rng = random.Random(f"{args.seed}-code-{number}")
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(path, folder, filter="data") if path.suffix != ".zip" else shutil.unpack_archive(
            path, folder
        )
        files = sorted(Path(folder).rglob("*.py"))
        lines = {file: file.read_text(encoding="utf-8").split("\n") for file in files}
        for name, count in zip(NAMES, COUNTS, strict=True):
            for _ in range(count):
                text = lines[rng.choice(files)]
                text.insert(rng.randrange(len(text)), COMMENT.format(name=name))
        for file, text in lines.items():
            file.write_text("\n".join(text), encoding="utf-8")
        return _asked(args, Path(folder))


def _asked(args: argparse.Namespace, path: Path) -> Values:
    """Every name asked for in the app, then of the rivals."""
    from app.chat import DocumentChat
    from app.settings import Settings

    engine = harness.engine(args)
    with tempfile.TemporaryDirectory() as home:
        chat = DocumentChat.open(Settings(home=Path(home), model=args.model), engine=engine)
        try:
            started = time.perf_counter()
            document = chat.library.add_document(path)
            added_s = time.perf_counter() - started
            parts = {part.index: part for part in chat.store.parts(document.id)}
            text = "\n".join(part.text for part in parts.values())
            rows = [_one(chat, document.id, parts, name) for name in NAMES]
            values = {"characters": len(text), "parts": len(parts), "added_s": round(added_s, 2), "names": rows}
            values["listed"] = _listed(chat, document.id, parts)
        finally:
            chat.close()
    if args.rivals:
        _rivals(args, engine, text, rows)
    return values


def _one(chat: "DocumentChat", document: str, parts: Mapping[int, Any], name: str) -> Values:
    started = time.perf_counter()
    *_, done = chat.ask(f'How often does "{name}" occur?', documents=[document])
    pattern = re.compile(r"\s+".join(map(re.escape, name.split())))
    truth = {(index, m.start()) for index, part in parts.items() for m in pattern.finditer(part.text)}
    told = int(re.search(r"stands (once|[\d,]+)", done.answer)[1].replace("once", "1").replace(",", ""))
    found = {
        (e.part, e.char_start + m.start()) for e in done.evidence for m in pattern.finditer(e.text)
    }  # a sentence that holds the name
    return {
        "name": name, "planted": COUNTS[NAMES.index(name)], "told": told, "right": told == COUNTS[NAMES.index(name)],
        "recall": round(len(found & truth) / max(1, len(truth)), 4),
        "precision": round(sum(bool(pattern.search(e.text)) for e in done.evidence) / max(1, len(done.evidence)), 4),
        "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip


def _listed(chat: "DocumentChat", document: str, parts: Mapping[int, Any]) -> Values:
    """Chapters of a book, or functions and classes of its largest module, against what a program counts."""
    code = [part for part in parts.values() if part.label.endswith(".py")]
    if code:
        module = max(code, key=lambda part: part.text.count("def "))
        truth = sum(
            len(Code(part.text).definitions) for part in code if part.label == module.label
        )  # long ones are cut
        *_, done = chat.ask(f"List all functions and classes in {module.label}", documents=[document])
        of_module = {e.part for e in done.evidence} <= {p.index for p in code if p.label == module.label}
    else:
        truth, of_module = len({part.chapter.casefold() for part in parts.values() if part.chapter}), True
        *_, done = chat.ask("List the chapters", documents=[document])
    told = int(re.search(r"has ([\d,]+) (?:definition|heading)", done.answer)[1].replace(",", ""))
    return {"known": truth, "told": told, "in_place": of_module}


def _rivals(args: argparse.Namespace, engine: "Engine", text: str, rows: Sequence[Values]) -> None:
    """What the model itself says to the same question, three ways."""
    from app.eval import texts
    from app.eval.texts import WordIndex

    bos = [] if engine.bos_id is None else [engine.bos_id]
    ids = engine.text_tokenizer.encode(text, add_special_tokens=False).ids
    window = harness.trained_tokens(args) - 256
    memory = engine.read([*bos, *ids[: args.tokens]], on_progress=harness.progress("reading"))
    cut = engine.read([*bos, *ids[:window]])
    words = WordIndex(engine, [memory])
    for row in rows:
        question = f'How often does "{row["name"]}" occur in the text? Answer with a number.'
        found = "\n".join(words.passages(question, PASSAGES))
        best = engine.read([*bos, *engine.text_tokenizer.encode(found, add_special_tokens=False).ids[:window]])
        for way, read, index in (("plain", memory, words), ("passages", best, None), ("cut", cut, None)):
            (reply,) = texts.converse(engine, [read], [question], ANSWER_TOKENS, words=index)
            row[way] = _number(reply.text)


def _number(said: str) -> int | None:
    """The first number of an answer, in figures or words."""
    words = re.findall(r"\d+|[a-z]+", said.lower().replace(",", ""))
    found = (
        int(word) if word.isdigit() else NUMBERS.index(word) for word in words if word.isdigit() or word in NUMBERS
    )
    return next(found, None)


def _finish(parts: Mapping[str, Values]) -> Values:
    rows = [row for values in parts.values() for row in values["names"]]
    listed = [values["listed"] for values in parts.values()]
    rivals = (
        {way: sum(row[way] == row["planted"] for row in rows) for way in ("plain", "passages", "cut") if way in rows[0]}
        if rows
        else {}
    )
    return {
        "names": len(rows),
        "counts_right": sum(row["right"] for row in rows),
        "recall": round(sum(row["recall"] for row in rows) / max(1, len(rows)), 4),
        "precision": round(sum(row["precision"] for row in rows) / max(1, len(rows)), 4),
        "counts_right_by_rivals": rivals,
        "lists_right": sum(found["known"] == found["told"] and found["in_place"] for found in listed),
        "lists": len(listed),
        "slowest_s": max((row["seconds"] for row in rows), default=0.0),
    }  # fmt: skip


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for name, values in parts.items():
        for row in values["names"]:
            told = [row.get(way) for way in ("told", "plain", "passages", "cut")]
            rows.append([name, row["planted"], *told, row["recall"], row["precision"]])
    return ["text", "planted", "through", "plain", "passages", "cut", "recall", "precision"], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "whole")
    parser.add_argument("--book", type=Path, action="append", default=[], help="a book; repeat for several")
    parser.add_argument("--code", type=Path, action="append", default=[], help="an archive of a repository; repeat")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of a text that the plain answer is about")
    parser.add_argument("--no-rivals", dest="rivals", action="store_false", help="leave the model's own counts out")
    args = parser.parse_args(argv)
    if args.quick:
        args.tokens = 300
    return args


if __name__ == "__main__":
    sys.exit(main())
