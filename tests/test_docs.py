"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NAMED = re.compile(r"(?<![\w./])(?:app|tests|benchmarks|scripts|docs)/[\w./-]*\w")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    named = set(NAMED.findall(document.read_text(encoding="utf-8")))
    missing = [name for name in named if not list(ROOT.glob(name.replace("VERSION", "*") + "*"))]
    assert missing == []


def test_links_lead_somewhere() -> None:
    lost = []
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                lost.append(f"{document.name}: {target}")
    assert lost == []
