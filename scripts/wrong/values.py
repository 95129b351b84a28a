"""Wrong values, drawn with a seed: single ones, JSON with wrong places, and files."""

import copy
import io
import json
import math
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HALF = "\ud83d"  # half a character
TEXTS = (
    "", " ", HALF, f"a{HALF}b", "\udcff", "nobody", "x" * 5_000, "\u202etxt", "\x1b[31mred", "é\u0301", "\ufeff",
    "None", "<b>x</b>", "../../etc/hostname", "%00", "{0}", "*", '"', "a\nb", "e1-1@2", "c@all", "-", "0", "﷽" * 300,
)  # fmt: skip
NUMBERS = (
    "-1", "0", "nan", "inf", "-inf", "1e3", "1e999", "1.5", "", "x", "9" * 30, "9" * 5_000, "2³", "٣", "-0.0", HALF,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, -(2**63), 1.5, math.nan, math.inf, "", HALF, "x" * 5_000, "\x00", "\u202e", [], [[]], {},
    [None], {"path": "/x"}, [HALF], {HALF: 1}, [1.5], "nobody",
)  # fmt: skip
SUFFIXES = (
    "pdf", "epub", "docx", "pptx", "odt", "odp", "rtf", "html", "mhtml", "ipynb", "srt", "vtt", "zip", "txt", "py",
    "json", "jsonl", "jsonl.xz", "md", "csv", "xml", "toml", "gguf", "lectern", "safetensors", "bin", "doc", "",
)  # fmt: skip
BEGINNINGS = (
    b"", b"%PDF-1.7\n", b"PK\x03\x04", b"{\\rtf1\\ansi ", b"\xff\xfe", b"GGUF\x03\x00\x00\x00", b"\xfd7zXZ\x00",
    b"\x1f\x8b", b"<?xml version='1.0'?><a>", b"<html><body>", b"WEBVTT\n\n", b"\x89PNG\r\n", b'{"cells": ',
)  # fmt: skip
EMPTY = '""'
INSIDE = ("[Content_Types].xml", "word/document.xml", "ppt/presentation.xml", "content.xml", "META-INF/container.xml",
          "mimetype", "chat.json", "manifest.json", "a.py", "a.txt")  # fmt: skip


def broken(value: Any, rng: random.Random) -> Any:
    """A copy of what JSON can hold with one to three wrong places: other values, missing and foreign keys."""
    made = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        places = list(_places(made))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        what = rng.random()
        if what < 0.15 and isinstance(holder, dict):
            del holder[key]
        elif what < 0.25 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = copy.deepcopy(rng.choice(VALUES))
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return made


def _places(value: Any) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def as_json(value: Any) -> bytes:
    """JSON as other programs write it: half characters as escapes, NaN as a word."""
    return json.dumps(value).encode()


def as_toml(tables: dict[str, Any]) -> bytes:
    """A TOML file of tables; what TOML cannot hold is written as JSON would, which is an error of its own."""
    lines = []
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key or EMPTY} = {_toml(item)}" for key, item in table.items())]
        else:
            lines.insert(0, f"{name or EMPTY} = {_toml(table)}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _toml(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=not isinstance(value, str))


def content(rng: random.Random) -> bytes:
    """What a file may hold instead of what its name says."""
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: rng.choice(BEGINNINGS),
        lambda: rng.choice(BEGINNINGS) + rng.randbytes(rng.randint(1, 3_000)),
        lambda: b"[" * 20_000,
        lambda: as_json(rng.choice(VALUES)),
        lambda: b"A text.\n" + bytes(rng.randint(1, 50)),
        lambda: "Ein Text.".encode("utf-16"),
        lambda: b"\xed\xa0\xbd half \xff\n",
        lambda: _archive(rng),
    )
    return rng.choice(kinds)()


def _archive(rng: random.Random) -> bytes:
    """A zip with the parts of several formats, each with a wrong content."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
        for name in rng.sample(INSIDE, rng.randint(0, len(INSIDE))):
            inner = (b"", b"<a/>", b"<a>" * 300, b"{}", b"[]", b"\xff\xfe<a/>", rng.randbytes(50))
            made.writestr(name, rng.choice(inner))
    data = out.getvalue()
    return data if rng.random() < 0.7 else data[: rng.randint(1, len(data))]


def wrong_file(folder: Path, rng: random.Random) -> Path:
    """A path that names no document: a file of a wrong content, a folder, or nothing."""
    kind = rng.random()
    if kind < 0.1:
        return folder / rng.choice(("missing.txt", "x" * 300, "a\nb", "\udcff.txt", "."))
    if kind < 0.15:
        loop = folder / "loop.txt"
        loop.unlink(missing_ok=True)
        loop.symlink_to(loop)
        return loop
    suffix = rng.choice(SUFFIXES)
    name = rng.choice(("wrong", "a b", "-x", "é", "\udcff"))  # the last: a byte that is not UTF-8
    path = folder / (f"{name}.{suffix}" if suffix else name)
    path.write_bytes(content(rng))
    return path
