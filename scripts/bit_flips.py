"""Flip single bits of kv.db: each is found or harmless, none changes what comes back, nothing crashes.

    python scripts/bit_flips.py --data 1000 --index 100

`--data` bits lie anywhere in the file: keys and values, SQLite's own pages, everything; `--index` bits in index rows.
After each flip the store is opened and every block is read: it has to be the block that was written, or to be refused.
A few flips are followed by a question to a chat, whose answer has to be the same. Prints one JSON line and writes
benchmarks/results/bit_flips.json; the exit code is 1 on any failure.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.errors import DamagedBlock, NotFoundError, StoreError  # noqa: E402
from app.store.blocks import BlockStore  # noqa: E402

BLOCKS = 40
GROUP = 8
TOKENS = [list(range(n * GROUP, n * GROUP + GROUP)) for n in range(BLOCKS)]
KEYS = BlockStore.chain_keys("root", [token for group in TOKENS for token in group], GROUP)


def content(number: int) -> tuple[bytes, list[bytes]]:
    """Index and rows of a block, by its number."""
    generator = random.Random(number)
    return generator.randbytes(1500), [generator.randbytes(9000), generator.randbytes(5000)]


def make(path: Path) -> bytes:
    """A store of BLOCKS blocks; returns its bytes."""
    blocks = BlockStore(path, disk_budget_bytes=1 << 30)
    for number, key in enumerate(KEYS):
        blocks.put(key, TOKENS[number], *content(number), "raw")
    blocks.close()
    return path.read_bytes()


def outcome(path: Path) -> str:
    """What became of the blocks: `harmless`, `found`, `refused` (the file), or `WRONG`."""
    try:
        blocks = BlockStore(path, disk_budget_bytes=1 << 30)
    except StoreError:
        return "refused"
    found = bool(blocks.notes)
    try:
        for number, key in enumerate(KEYS):
            try:
                if blocks.get(key, TOKENS[number]) != content(number):
                    return f"WRONG block {number}"
                index = next(blocks.get_indexes([key], [TOKENS[number]]))
                if (index, blocks.read_rows(key, [0, 1])) != content(number):
                    return f"WRONG rows of block {number}"
            except (DamagedBlock, NotFoundError):
                found = True
        for key in (*KEYS, *blocks.settled_keys()):  # what else the app asks for must not fail either
            blocks.tokens_in(key) if not found else None
        blocks.verify(repair=True)
        blocks.stats()
        blocks.costs()
        blocks.enforce_budget(set())
    except StoreError:
        found = True
    finally:
        blocks.close()
    return "found" if found else "harmless"


def flip(data: bytes, bit: int) -> bytes:
    """The bytes with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def run(data_flips: int, index_flips: int, answers: int, seed: int = 0) -> dict[str, Any]:
    """Flip so many bits; returns the counts and every failure."""
    logging.disable(logging.ERROR)
    generator = random.Random(seed)
    counts: dict[str, Counter[str]] = {"data": Counter(), "index": Counter()}
    problems = []
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kv.db"
        whole = make(path)
        places = [whole.index(content(number)[0][:64]) for number in range(BLOCKS)]
        for number in range(data_flips + index_flips):
            kind = "data" if number < data_flips else "index"
            if kind == "data":
                bit = generator.randrange(8 * len(whole))
            else:
                bit = 8 * generator.choice(places) + generator.randrange(8 * 64)
            for old in Path(folder).iterdir():
                old.unlink()
            path.write_bytes(flip(whole, bit))
            try:
                word = outcome(path)
            except Exception as error:  # a crash is what this looks for
                word = f"CRASH {type(error).__name__}: {error}"
            counts[kind][word.split()[0]] += 1
            if word.split()[0] not in ("harmless", "found", "refused"):
                problems.append(f"{kind} bit {bit}: {word}")
    problems += _answers(answers, generator)
    logging.disable(logging.NOTSET)
    return {
        "flips": {kind: dict(found) for kind, found in counts.items()},
        "answers": answers,
        "problems": problems,
        "seconds": round(time.time() - started, 1),
    }


def _answers(count: int, generator: random.Random) -> list[str]:
    """Ask a chat after each flip; returns what was wrong."""
    from app.chat import DocumentChat
    from app.memory.config import GenerationConfig
    from app.records import Done
    from app.settings import Settings
    from tests import tiny

    if not count:
        return []
    engine, problems = tiny.engine(), []
    with tempfile.TemporaryDirectory() as folder:
        home, book = Path(folder) / "home", Path(folder) / "book.txt"
        book.write_text(" ".join(f"word{n}" for n in range(120)), encoding="utf-8")

        def ask() -> str:
            chat = DocumentChat.open(Settings(home=home), engine=engine)
            try:
                document = chat.library.add_document(book)
                *_, done = chat.ask("who?", documents=[document.id], generation=GenerationConfig(max_new_tokens=6))
                assert isinstance(done, Done)
                return done.answer
            finally:
                chat.close()

        expected = ask()
        kept = (home / "kv.db").read_bytes()
        for _ in range(count):
            for old in home.glob("kv*"):
                old.unlink()
            bit = generator.randrange(8 * len(kept))
            (home / "kv.db").write_bytes(flip(kept, bit))
            try:
                if (answer := ask()) != expected:
                    problems.append(f"bit {bit}: the answer is {answer!r}, not {expected!r}")
            except StoreError:
                pass  # the file is refused with a message
            except Exception as error:
                problems.append(f"bit {bit}: CRASH {type(error).__name__}: {error}")
    return problems


def main() -> int:
    """Parse flags, run, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=1000, help="bits anywhere in the file (1000)")
    parser.add_argument("--index", type=int, default=100, help="bits in index rows (100)")
    parser.add_argument("--answers", type=int, default=50, help="of further flips, followed by a question (50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "bit_flips.json")
    args = parser.parse_args()
    from benchmarks import machine

    result = {"benchmark": "bit_flips", **run(args.data, args.index, args.answers, args.seed), **machine.describe()}
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("flips", "answers", "problems", "seconds")}))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
