"""Read a long text, ask twice, restart and ask again: times, memory and disk, as a table, one JSON line and one file.

    python benchmarks/reading.py --megabytes 1 --file book.txt

Speeds are told only when the second question and the first after the restart read nothing of the document, and the
greedy answer after the restart is that of the unbroken chat.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import system
from app.chat import DocumentChat
from app.eval import report
from app.memory.config import GenerationConfig
from app.records import Done
from app.settings import SMALL_MODEL, Settings, fill
from app.system import peak_bytes
from benchmarks import machine

BOOK = machine.ROOT / "tests" / "data" / "book.txt"
FIRST, SECOND = "Who is speaking?", "What happens next?"
TURN_TOKENS = 128  # more than the template and a question here can take; far less than any document


def main() -> int:
    """Measure; the exit code is 1, and no speed is told, when a document is read twice or an answer changes."""
    args = _arguments()
    system.keep_private()
    flags = {"model": args.model, "device": args.device, "threads": args.threads}
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(fill(Settings, flags=flags), home=Path(folder) / "home")
        text = Path(folder) / "book.txt"
        text.write_text(_text(args.file or [BOOK], int(args.megabytes * 1e6)), encoding="utf-8")
        text_bytes = text.stat().st_size
        measured, chat, expected = _first_run(settings, text, args.max_new_tokens)
        measured["disk"] = {"bytes": sum(p.stat().st_size for p in settings.folder.rglob("*") if p.is_file())}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            started = time.time()
            restart = fresh.submit(_resume, settings, chat, args.max_new_tokens).result()
    same = restart.pop("answer") == expected
    restart["seconds_from_start"] = round(restart.pop("first_token_at") - started, 2)
    measured["restart"] = restart
    problems = [] if same else ["the answer after the restart is another one"]
    for step in ("second_question", "restart"):
        if measured[step]["tokens_read"] > TURN_TOKENS:
            problems.append(f"{step}: {measured[step]['tokens_read']} tokens read")
    if problems:
        print("; ".join(problems), file=sys.stderr)
        return 1
    result = {
        "benchmark": "reading",
        "model": Path(settings.model).name,
        "text": {"bytes": text_bytes, "files": [path.name for path in args.file or [BOOK]]},
        "load_before": load_before,
        **measured,
        **machine.describe(),
    }
    rows = [[step, name, value] for step, values in measured.items() for name, value in values.items()]
    print(report.table(["step", "figure", "value"], rows))
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _text(files: list[Path], size: int) -> str:
    """The files joined, again and again until the text has `size` bytes."""
    whole = "\n\n".join(path.read_text(encoding="utf-8") for path in files) + "\n\n"
    data = whole.encode()
    return (data * (size // len(data) + 1))[:size].decode(errors="ignore")


def _first_run(settings: Settings, text: Path, max_new_tokens: int) -> tuple[dict[str, Any], str, str]:
    """Read and ask.

    Returns:
        (figures, a chat with one turn, what its unbroken twin answered to the second question).
    """
    started = time.perf_counter()
    app = DocumentChat.open(settings)
    try:
        engine = app.model.engine()
        loaded = time.perf_counter()
        document = app.library.add_document(text)
        added = time.perf_counter()
        for _ in app.read(document.id):
            pass
        read = time.perf_counter()
        tokens = app.library.document(document.id).tokens
        first = _ask(app, FIRST, max_new_tokens, documents=[document.id])
        second = _ask(app, SECOND, max_new_tokens, chat=first.chat)
        twin = _ask(app, FIRST, max_new_tokens, documents=[document.id])
        figures = {
            "settings": {name: engine.description[name] for name in ("threads", "dtype", "policy", "budget_tokens")},
            "loading": {"seconds": round(loaded - started, 2)},
            "reading": {
                "tokens": tokens,
                "ingest_seconds": round(added - loaded, 2),
                "seconds": round(read - added, 2),
                "tokens_per_s": round(tokens / (read - added), 1),
                "peak_bytes": peak_bytes(),
            },
            "first_question": _figures(first),
            "second_question": _figures(second),
        }
        return figures, twin.chat, second.answer
    finally:
        app.close()


def _resume(settings: Settings, chat_id: str, max_new_tokens: int) -> dict[str, Any]:
    """In a fresh process: open the saved chat and go on."""
    system.keep_private()
    app = DocumentChat.open(settings)
    try:
        app.model.engine()
        opened = time.time()
        done = _ask(app, SECOND, max_new_tokens, chat=chat_id)
        first_token_at = opened + done.stats.seconds_to_first_token
        return {**_figures(done), "answer": done.answer, "first_token_at": first_token_at}
    finally:
        app.close()


def _ask(app: DocumentChat, question: str, max_new_tokens: int, **target: Any) -> Done:
    *_, done = app.ask(question, generation=GenerationConfig(max_new_tokens=max_new_tokens), **target)
    assert isinstance(done, Done)
    return done


def _figures(done: Done) -> dict[str, Any]:
    names = ("tokens_read", "tokens_reused", "new_tokens", "seconds_to_first_token", "seconds", "tokens_per_s")
    return {name: getattr(done.stats, name) for name in names} | {"peak_bytes": done.stats.peak_bytes}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=1.0, help="size of the text in millions of bytes")
    parser.add_argument("--file", type=Path, action="append", help="a book; several are joined (default: a test book)")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "reading.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
