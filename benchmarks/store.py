"""What memories cost on the disk, by policy and codec, and how fast blocks are written and read beside a plain file.

    python benchmarks/store.py --file BOOK

Bytes per token are those of a text of `--tokens` tokens read with the model. Speeds are those of blocks of one size
filled with noise: committed and synced, as the plain file is; both are read back from the page cache, the blocks with
every check.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import system
from app.chat import DocumentChat
from app.eval import report
from app.settings import KV_CODECS, POLICIES, SMALL_MODEL, Settings, fill
from app.store.blocks import BlockStore
from benchmarks import machine
from benchmarks.reading import BOOK, _text

BLOCK_BYTES = 1 << 18
GROUP_TOKENS = 128
TOKEN_BYTES = 3.86  # of English text, by the tokenizer that ships
SLOT_POLICIES = ("h2o", "bounded")  # take raw keys and values


def main(argv: list[str] | None = None) -> int:
    """Measure; the exit code is 1 when a byte comes back otherwise than it was written."""
    args = _arguments(argv)
    system.keep_private()
    sizes = [
        _size(args, policy, codec) for policy in POLICIES for codec in (KV_CODECS if policy == "keep-all" else ("raw",))
    ]
    raw = next(row["bytes_per_token"] for row in sizes if row["policy"] == "keep-all")
    for row in sizes:
        row["of_raw"] = round(row["bytes_per_token"] / raw, 3)
    speeds = [_speeds(args.megabytes) for _ in range(args.repeats)]
    if not all(speed.pop("same") for speed in speeds):
        print("a block came back otherwise than it was written: nothing is told", file=sys.stderr)
        return 1
    medians = {name: round(statistics.median(speed[name] for speed in speeds), 1) for name in speeds[0]}
    result = {
        "benchmark": "store",
        "model": Path(args.model).name,
        "settings": {"tokens": args.tokens, "megabytes": args.megabytes, "block_bytes": BLOCK_BYTES},
        "sizes": sizes,
        "megabytes_per_s": {"median": medians, "runs": speeds},
        **machine.describe(),
    }
    print(report.table(list(sizes[0]), [list(row.values()) for row in sizes]))
    print(report.table(["speed", "MB/s"], [[name, value] for name, value in medians.items()]))
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _size(args: argparse.Namespace, policy: str, codec: str) -> dict[str, Any]:
    """What one text costs on the disk under a policy and codec."""
    flags = {"model": args.model, "threads": 1, "policy": policy, "kv_codec": codec}
    if policy == "bounded":
        flags["memory_cap_mb"] = args.cap_mb
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(fill(Settings, environment={}, flags=flags), home=Path(folder) / "home")
        text = Path(folder) / "book.txt"
        text.write_text(_text(args.file or [BOOK], int(args.tokens * TOKEN_BYTES)), encoding="utf-8")
        chat = DocumentChat.open(settings)
        try:
            document = chat.library.add_document(text)
            for _ in chat.read(document.id):
                pass
            chat.store.blocks.flush()
            tokens, held = chat.library.document(document.id).tokens, chat.store.blocks.stats()
            costs = chat.store.blocks.costs()
        finally:
            chat.close()
    size = sum(cost.size_bytes for cost in costs.values())
    return {
        "policy": policy, "codec": codec, "tokens": tokens, "blocks": held["blocks"],
        "bytes_per_token": round(size / tokens, 1),
    }  # fmt: skip


def _speeds(megabytes: int) -> dict[str, Any]:
    """MB/s of writing and reading blocks and a plain file, side by side."""
    blocks = [os.urandom(BLOCK_BYTES) for _ in range(megabytes * 1_000_000 // BLOCK_BYTES)]
    ids = list(range(GROUP_TOKENS))
    with tempfile.TemporaryDirectory() as folder:
        store = BlockStore(Path(folder) / "kv.db", disk_budget_bytes=1 << 40)
        try:
            keys = [f"{number:064x}" for number in range(len(blocks))]

            def put() -> None:
                for key, block in zip(keys, blocks, strict=True):
                    store.put(key, ids, b"", [block], "raw")
                store.flush()

            plain = Path(folder) / "plain"

            def write() -> None:
                with plain.open("wb") as file:
                    for block in blocks:
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())

            seconds = {"blocks_write": _timed(put), "file_write": _timed(write)}
            got: list[bytes] = []
            seconds["blocks_read"] = _timed(
                lambda: got.extend(kv[0] for _, kv in store.get_many(keys, [ids] * len(keys)))
            )
            seconds["file_read"] = _timed(lambda: plain.read_bytes())
            same = got == blocks
        finally:
            store.close()
    size = len(blocks) * BLOCK_BYTES / 1e6
    return {**{name: round(size / elapsed, 1) for name, elapsed in seconds.items()}, "same": same}


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, action="append", help="a book; several are joined (default: a test book)")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--cap-mb", type=int, default=16, help="memory cap of the policy bounded")
    parser.add_argument("--megabytes", type=int, default=256, help="blocks written for the speeds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "store.json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
