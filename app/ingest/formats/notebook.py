"""Jupyter notebooks: sources, Markdown, and what the cells printed; pictures are counted and left out."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.ingest.blocks import About, Block, Refused
from app.ingest.formats import html

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_RETURN = re.compile(r"[^\n]*\r(?!\n)")  # a progress bar writes its line anew
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t#]*$", re.MULTILINE)
_FENCED = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
_OLD_FORMS = {"text": "text/plain", "latex": "text/latex"} | {form: f"image/{form}" for form in ("png", "jpeg", "svg")}
_LEFT_OUT = {"image": "picture", "video": "video", "audio": "sound"}


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The cells of a notebook, one part each, called "cell N" as they are counted from 1.

    Raises:
        Refused: it is no notebook, or has no cells.
    """
    yield from cells(path.read_bytes(), about)


def cells(data: bytes, about: About) -> Iterator[Block]:
    """What `blocks` gives, of bytes."""
    found = _cells(data)
    left_out: Counter[str] = Counter()
    about.total = len(found)
    for number, cell in enumerate(found, start=1):
        about.done = number
        source = _text(cell.get("source", cell.get("input", "")))
        kind = cell.get("cell_type")
        left_out["attachment"] += len(cell.get("attachments") or ())
        if kind == "heading":  # of format 3
            source = f"{'#' * int(cell.get('level', 1))} {source}"
        chapter = _heading(source) if kind in ("markdown", "heading") else None
        text = "\n\n".join(filter(None, (text.strip("\n") for text in (source, *_outputs(cell, left_out)))))
        yield Block(text, chapter, opens=True, place=f"cell {number}")
    if left_out := +left_out:
        counts = [f"{count:,} {what}{'' if count == 1 else 's'}" for what, count in left_out.items()]
        about.notes.append(f"left out of its outputs and cells: {', '.join(counts)}")


def _cells(data: bytes) -> list[dict[str, Any]]:
    try:
        book = json.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Refused(f"not a notebook or cut off ({error}); save it again in Jupyter") from error
    except RecursionError as error:
        raise Refused("not a notebook, it is nested too deep; save it again in Jupyter") from error
    found = book.get("cells") if isinstance(book, dict) else None
    if found is None and isinstance(book, dict):
        sheets = [sheet for sheet in book.get("worksheets") or () if isinstance(sheet, dict)]
        found = [cell for sheet in sheets for cell in sheet.get("cells", ())] if sheets else None
    if not isinstance(found, list):
        raise Refused('not a notebook, it has no "cells"; save it again in Jupyter, or as .txt if it is other JSON')
    found = [cell for cell in found if isinstance(cell, dict)]
    if not found:
        raise Refused("this notebook has no cells (0); choose one with text in it")
    return found


def _outputs(cell: dict[str, Any], left_out: Counter[str]) -> Iterator[str]:
    """What a code cell printed, answered or failed with."""
    for output in cell.get("outputs") or ():
        if not isinstance(output, dict):
            continue
        kind = output.get("output_type")
        if kind == "stream":
            yield _printed(_text(output.get("text", "")))
        elif kind in ("error", "pyerr"):
            trace = _printed("\n".join(map(str, output.get("traceback") or ())))
            yield trace if trace.strip() else f"{output.get('ename', '')}: {output.get('evalue', '')}"
        else:
            yield _shown(output, left_out)


def _shown(output: dict[str, Any], left_out: Counter[str]) -> str:
    """The plain form of a result; its twins as HTML and its pictures are left out."""
    data = output.get("data")
    if not isinstance(data, dict):  # format 3 has the forms beside the type
        data = {_OLD_FORMS[name]: value for name, value in output.items() if name in _OLD_FORMS}
    for form in data:
        if what := _LEFT_OUT.get(form.partition("/")[0]):
            left_out[what] += 1
        elif form.startswith("application/vnd.jupyter.widget"):
            left_out["widget"] += 1
    plain = _printed(_text(data.get("text/plain", "")))
    if plain and not plain.startswith("<IPython.core.display."):
        return plain
    for form in ("text/markdown", "text/latex"):
        if form in data:
            return _text(data[form])
    return _page(_text(data.get("text/html", "")))


def _page(text: str) -> str:
    """What a reader sees of a result that has no form but HTML."""
    return "\n\n".join(block.text for block in html.page(text.encode(), About())) if text.strip() else ""


def _text(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _printed(text: str) -> str:
    return _RETURN.sub("", _COLOUR.sub("", text).replace("\r\n", "\n"))


def _heading(source: str) -> str | None:
    found = _HEADING.search(_FENCED.sub("", source))
    return found[1] if found and found[1] else None
