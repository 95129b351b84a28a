"""What other libraries read of the files of `formats.py`: prints {library version: {file: text}} as JSON.

PYTHON_WITH_THE_LIBRARIES benchmarks/formats_others.py FOLDER
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path


def python_docx(path: Path) -> str:
    import docx

    texts = []
    for item in docx.Document(str(path)).iter_inner_content():
        rows = item.rows if hasattr(item, "rows") else ()
        texts += [cell.text for row in rows for cell in row.cells] if rows else [item.text]
    return "\n".join(texts)


def mammoth(path: Path) -> str:
    import mammoth

    with open(path, "rb") as file:
        return mammoth.extract_raw_text(file).value


def docx2python(path: Path) -> str:
    from docx2python import docx2python

    with docx2python(path) as found:
        return found.text


def python_pptx(path: Path) -> str:
    from pptx import Presentation

    texts = []
    for slide in Presentation(str(path)).slides:
        texts += [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame]
        texts += [c.text for s in slide.shapes if s.has_table for row in s.table.rows for c in row.cells]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame:
            texts.append(slide.notes_slide.notes_text_frame.text)
    return "\n".join(texts)


def ebooklib(path: Path) -> str:
    import ebooklib
    from ebooklib import epub
    from lxml import html

    book = epub.read_epub(str(path))
    pages = [item.get_content() for item in book.get_items_of_type(ebooklib.ITEM_DOCUMENT)]
    return "\n".join(html.fromstring(page).text_content() for page in pages if page.strip())


def trafilatura(path: Path) -> str:
    import trafilatura

    return trafilatura.extract(path.read_text(encoding="utf-8"), favor_recall=True) or ""


def markitdown(path: Path) -> str:
    from markitdown import MarkItDown

    return MarkItDown().convert(str(path)).text_content


def pandoc(path: Path) -> str:
    return subprocess.run(
        ["pandoc", "-t", "plain", "--wrap=none", str(path)], capture_output=True, text=True, check=True, timeout=60
    ).stdout


READERS: dict[str, tuple[Callable[[Path], str], tuple[str, ...]]] = {
    "python-docx": (python_docx, (".docx",)), "mammoth": (mammoth, (".docx",)),
    "docx2python": (docx2python, (".docx",)), "python-pptx": (python_pptx, (".pptx",)),
    "ebooklib": (ebooklib, (".epub",)), "trafilatura": (trafilatura, (".html",)),
    "markitdown": (markitdown, (".docx", ".pptx", ".epub", ".html", ".ipynb")),
    "pandoc": (pandoc, (".docx", ".odt", ".rtf", ".epub", ".html", ".ipynb")),
}  # fmt: skip


def _pandoc_version() -> str:
    return subprocess.run(["pandoc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def main() -> None:
    found: dict[str, dict[str, str]] = {}
    for name, (read, endings) in READERS.items():
        label = f"{name} {_pandoc_version() if name == 'pandoc' else version(name)}"
        for path in sorted(Path(sys.argv[1]).iterdir()):
            if path.suffix in endings:
                try:
                    found.setdefault(label, {})[path.name] = read(path)
                except ImportError:  # it is not there: no figure of its own
                    raise
                except Exception as error:
                    found.setdefault(label, {})[path.name] = f"failed: {type(error).__name__}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
