"""Go on with a chat about a long text after a restart: seconds to the first token, against reading the text again.

    python benchmarks/resume.py --tokens 100000 1000000 --codec raw int8 int4 --file BOOK

A fresh process loads the model, opens the chat in the running app and asks; the page cache is warm, since the text was
written just before. Then it asks once more with everything dropped from RAM but the model. Times are told only when
nothing of the text is read again and the greedy answer is that of the unbroken chat, whatever the codec: a running chat
sees what the store holds.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import system
from app.chat import DocumentChat
from app.eval import report
from app.settings import KV_CODECS, SMALL_MODEL, Settings, fill
from benchmarks import machine
from benchmarks.reading import BOOK, SECOND, TURN_TOKENS, _ask, _figures, _first_run, _text

TOKEN_BYTES = 3.86  # of English text, by the tokenizer that ships
TOKENS_PER_S = 2000  # read by one idle core with the model that ships


def main(argv: list[str] | None = None) -> int:
    """Measure; the exit code is 1, and no time is told, when something is read again or an answer changes."""
    args = _arguments(argv)
    parts = [(tokens, codec) for tokens in args.tokens for codec in args.codec]
    if args.estimate:
        for tokens, codec in parts:
            print(f"{tokens:,} tokens, {codec}: {tokens / TOKENS_PER_S / 60 + 1:.0f} min")
        return 0
    system.keep_private()
    results, problems = [], []
    for tokens, codec in parts:
        figures, found = _measure(args, tokens, codec)
        results.append(figures)
        problems += [f"{tokens:,} tokens, {codec}: {problem}" for problem in found]
    if problems:
        print("; ".join(problems), file=sys.stderr)
        return 1
    result = {"benchmark": "resume", "parts": results, **machine.describe()}
    names = list(results[0])
    print(report.table(names, [[part[name] for name in names] for part in results]))
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _measure(args: argparse.Namespace, tokens: int, codec: str) -> tuple[dict[str, Any], list[str]]:
    """Figures of one text and codec, and what is wrong with them."""
    flags = {"model": args.model, "device": args.device, "threads": args.threads, "kv_codec": codec}
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(fill(Settings, flags=flags), home=Path(folder) / "home")
        text = Path(folder) / "book.txt"
        text.write_text(_text(args.file or [BOOK], int(tokens * TOKEN_BYTES)), encoding="utf-8")
        first, chat, expected = _first_run(settings, text, args.max_new_tokens)
        disk = sum(path.stat().st_size for path in settings.folder.glob("kv.db*"))
        if hasattr(os, "sync"):
            os.sync()  # else the system still writes gigabytes while the chat is opened
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            opened = fresh.submit(_resume, settings, chat, args.max_new_tokens).result()
    reading = first["reading"]
    figures = {
        "tokens": reading["tokens"],
        "codec": codec,
        "reading_s": reading["seconds"],
        "first_token_s": opened["first"]["seconds_to_first_token"],
        "again_s": opened["again"]["seconds_to_first_token"],
        "ratio": round(reading["seconds"] / max(1e-3, opened["first"]["seconds_to_first_token"])),
        "hot_groups": opened["hot_groups"],
        "groups": opened["groups"],
        "peak_bytes": opened["again"]["peak_bytes"],
        "kv_bytes_per_token": round(disk / reading["tokens"]),
    }
    problems = [] if opened["answer"] == expected else ["the answer after the restart is another one"]
    for step in ("first", "again"):
        if opened[step]["tokens_read"] > TURN_TOKENS:
            problems.append(f"{opened[step]['tokens_read']} tokens were read after the restart")
    return figures, problems


def _resume(settings: Settings, chat: str, max_new_tokens: int) -> dict[str, Any]:
    """In a fresh process: go on with the chat, then again as if it had never been open."""
    system.keep_private()
    app = DocumentChat.open(settings)
    try:
        app.model.engine()
        first = _ask(app, SECOND, max_new_tokens, chat=chat)
        reader = app.model.sessions().reader
        (document,) = app.library.documents()
        (memory,) = reader._kept[document.id].memories
        facts = {"hot_groups": memory.pages.held_groups()[0], "groups": memory.groups, "answer": first.answer}
        del memory
        app.model.sessions().session = None
        reader.forget(document.id)
        again = _ask(app, SECOND, max_new_tokens, chat=chat)
        return {"first": _figures(first), "again": _figures(again), **facts}
    finally:
        app.close()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[100_000, 1_000_000], help="lengths of the text, about"
    )
    parser.add_argument("--codec", nargs="+", choices=KV_CODECS, default=["raw"])
    parser.add_argument("--file", type=Path, action="append", help="a book; several are joined (default: a test book)")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--estimate", action="store_true", help="print the minutes of each part on one idle core")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "resume.json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
