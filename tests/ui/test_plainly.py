"""No message of the page holds a command line or an id."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.ui.plainly import plainly

APP = Path(__file__).resolve().parents[2] / "app"
TERMINAL = ("cli", "setup", "recovery.py", "server.py", "train", "eval")  # what these say is read there
FOR_TERMINAL = re.compile(r"launch\.py|(?<![\w-])--[a-z]")


def messages() -> Iterator[str]:
    """Every text of the app that tells what to do in a terminal; values in it are put in as a word."""
    for path in sorted(APP.rglob("*.py")):
        if path.relative_to(APP).parts[0] in TERMINAL or path.name == "plainly.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree)
                      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))}  # fmt: skip
        for node in ast.walk(tree):
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                text = node.value
            if FOR_TERMINAL.search(text) and "<" not in text and " " in text.strip():
                yield text


def test_what_is_said_for_the_terminal_is_said_otherwise_on_the_page() -> None:
    found = list(messages())
    assert len(found) > 30
    left = {text: plainly(text) for text in found if FOR_TERMINAL.search(plainly(text))}
    assert left == {}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            'a.pdf: a scan; read them by OCR: "python launch.py read --ocr a.pdf", or tick OCR where files are dropped',
            "a.pdf: a scan; tick “Read scanned pages by OCR” in Library and add it again",
        ),
        (
            "c.lectern: made with another model; import it with --text-only, the documents are read again then",
            "c.lectern: made with another model; tick “Leave its memory out” and import it again",
        ),
        ("its base is not here; `python launch.py fetch` gets it", "its base is not here; the next start gets it"),
        ("--model x: no such folder; give a checkpoint folder", "model x: no such folder; give a checkpoint folder"),
        ("model 0123456789abcdef: is gone", "this model: is gone"),
        ("chat '0123abcd4567': has 2 questions", "this chat: has 2 questions"),
        (
            "a.pdf: a scan; install OCR with \"python launch.py setup --with ocr\" and read it with --ocr, or run "
            "\"ocrmypdf in.pdf out.pdf\" and add the result",
            "a.pdf: a scan; OCR is not installed here (docs/ingest.md tells how); or add a copy that holds text",
        ),
        ("0123abcd4567.pdf: empty", "0123abcd4567.pdf: empty"),
        ("passage e20-1 is not there", "this passage is not there"),
        ("Report 2024-06--draft.pdf: empty", "Report 2024-06--draft.pdf: empty"),
        ("a face, a decade and 1234567890123 stay", "a face, a decade and 1234567890123 stay"),
    ],
)  # fmt: skip
def test_a_message_says_what_to_do_on_the_page(message: str, said: str) -> None:
    assert plainly(message) == said
