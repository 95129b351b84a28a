"""Ask for a planted fact in a file of each format, in the browser: `python scripts/ask_formats.py [--pictures FOLDER]`.

The real app on the shipped model reads the files in a data folder that is thrown away. For each, one of the first
passages of the answer must hold the fact and open at its place, on the picture of its page where OCR read it. A table,
and one JSON file with the answers beside it. Needs Chromium and the test packages.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import expect  # noqa: E402

from app.ingest import ocr  # noqa: E402
from app.settings import SHIPPED_MODEL  # noqa: E402
from app.tasks.needles import Passkey  # noqa: E402
from benchmarks import machine  # noqa: E402
from tests.browser import Visit, chromium, find_chromium, visiting  # noqa: E402
from tests.ingest.pdf_maker import drawn, page_objects, pdf_bytes  # noqa: E402
from tests.serving import serving  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "asked_formats.json"
MINUTES_S = 20 * 60  # until the model is ready, all is read, a question is answered
CLICK_S = 120  # until a click has done its work, on a busy machine
PASSAGES = 3  # of an answer that are looked at
WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
SLIDES = "application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


@dataclass(frozen=True)
class Asked:
    """A made file, and what is right.

    Attributes:
        label: where the fact stands, as the viewer calls places.
    """

    path: Path
    key: Passkey
    label: str

    def is_at(self, where: str) -> bool:
        """Whether a place, which may be one from a number to another, holds the fact's."""
        name, number = re.fullmatch(r"(.*?)([\d:]+)", self.label).groups()
        name = re.escape(name).replace("line", "lines?")
        found = re.search(rf"(?:^|· |\b){name}([\d:]+)(?:-([\d:]+))?(?= ·|$)", where)
        return bool(found) and _clock(found[1]) <= _clock(number) <= _clock(found[2] or found[1])


def _clock(number: str) -> list[int]:
    """ "1:02:03" as numbers, to be compared."""
    return [0] * (2 - number.count(":")) + [int(digits) for digits in number.split(":")]


@dataclass(frozen=True)
class Answered:
    """What came of a question. `problem`: "" where a passage with the fact opened at its place."""

    file: str
    label: str
    opened_at: str
    answer: str
    in_answer: bool
    problem: str


def filler(seed: int, count: int = 6) -> list[str]:
    """Paragraphs of the test book."""
    text = (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")
    found = [" ".join(piece.split()) for piece in text.split("\n\n") if len(piece) > 200]
    return random.Random(seed).sample(found, count)


def paragraphs(seed: int, key: Passkey) -> list[str]:
    """Six paragraphs with the fact as the fourth."""
    found = filler(seed)
    return [*found[:3], key.sentence, *found[3:]]


def package(path: Path, members: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name, text, zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED)


def relations(*kinds: tuple[str, str]) -> str:
    items = "".join(
        f'<Relationship Id="r{n}" Type="{RELATIONS}/{kind}" Target="{target}"/>'
        for n, (kind, target) in enumerate(kinds, 1)
    )
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{items}</Relationships>'
    )


def pages_of(key: Passkey, seed: int) -> bytes:
    """A PDF of three pages, the fact on the second."""
    texts = filler(seed, 3)
    lines = ["\n".join(text[at : at + 70] for at in range(0, min(len(text), 1400), 70)) for text in texts]
    lines[1] = key.sentence + "\n" + lines[1]
    plain = [text.encode("ascii", "ignore").decode().translate({40: None, 41: None, 92: None}) for text in lines]
    return pdf_bytes(page_objects([drawn(text) for text in plain]))


def pdf(path: Path, key: Passkey) -> str:
    path.write_bytes(pages_of(key, 1))
    return "p. 2"


def scan(path: Path, key: Passkey) -> str:
    """The same pages as pictures."""
    import pypdfium2

    pages = pypdfium2.PdfDocument(pages_of(key, 2))
    first, *others = (page.render(scale=2).to_pil().convert("L") for page in pages)
    first.save(path, resolution=144, save_all=True, append_images=others)
    return "p. 2"


def text(path: Path, key: Passkey) -> str:
    path.write_text("# Tides\n\n" + "\n\n".join(paragraphs(3, key)), encoding="utf-8")
    return "Tides, line 9"


def html(path: Path, key: Passkey) -> str:
    body = "".join(f"<p>{text}</p>" for text in paragraphs(4, key))
    path.write_text(f"<!doctype html><html><body><main><h1>Tides</h1>{body}</main></body></html>", encoding="utf-8")
    return "Tides, paragraph 4"


def mhtml(path: Path, key: Passkey) -> str:
    html(path, key)
    page = path.read_text(encoding="utf-8").replace("=", "=3D")
    path.write_text(
        "MIME-Version: 1.0\r\nContent-Type: multipart/related; boundary=x\r\n\r\n--x\r\n"
        "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        f"{page.replace('=3D', '=')}\r\n--x--\r\n", encoding="utf-8", newline="",
    )  # fmt: skip
    return "Tides, paragraph 4"


def epub(path: Path, key: Passkey) -> str:
    body = "".join(f"<p>{text}</p>" for text in paragraphs(5, key))
    page = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head><body>{}</body></html>'
    package(path, {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="o.opf"/></rootfiles></container>',
        "o.opf": '<package><metadata/><manifest><item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="b" href="b.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="a"/>'
        '<itemref idref="b"/></spine></package>',
        "a.xhtml": page.format(f"<h1>Ebb</h1><p>{filler(50, 1)[0]}</p>"),
        "b.xhtml": page.format(f"<h1>Flood</h1>{body}"),
    })  # fmt: skip
    return "Flood, paragraph 4"


def docx(path: Path, key: Passkey) -> str:
    def p(text: str, style: str = "") -> str:
        return f"<w:p>{style}<w:r><w:t>{text}</w:t></w:r></w:p>"

    head = '<w:pPr><w:outlineLvl w:val="0"/></w:pPr>'
    body = p("Tides", head) + "".join(map(p, paragraphs(6, key)))
    package(path, {
        "[Content_Types].xml": f'<Types><Override PartName="/word/document.xml" ContentType="{WORD}"/></Types>',
        "_rels/.rels": relations(("officeDocument", "word/document.xml")),
        "word/document.xml": '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        f"<w:body>{body}</w:body></w:document>",
    })  # fmt: skip
    return "Tides, paragraph 4"


def odt(path: Path, key: Passkey) -> str:
    names = "urn:oasis:names:tc:opendocument:xmlns:"
    body = '<text:h text:outline-level="1">Tides</text:h>' + "".join(
        f"<text:p>{text}</text:p>" for text in paragraphs(7, key)
    )
    package(path, {
        "mimetype": "application/vnd.oasis.opendocument.text",
        "content.xml": f'<office:document-content xmlns:office="{names}office:1.0" xmlns:text="{names}text:1.0">'
        f"<office:body><office:text>{body}</office:text></office:body></office:document-content>",
    })  # fmt: skip
    return "Tides, paragraph 4"


def rtf(path: Path, key: Passkey) -> str:
    texts = [text.encode("ascii", "ignore").decode() for text in paragraphs(8, key)]
    path.write_text(r"{\rtf1\ansi " + "".join(f"{text}\\par " for text in texts) + "}", encoding="ascii")
    return "paragraph 4"


def pptx(path: Path, key: Passkey) -> str:
    spaces = (
        'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:r="REL" '
        'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
    ).replace("REL", RELATIONS)
    texts = filler(9, 3)
    slides = [texts[0], key.sentence + " " + texts[1], texts[2]]
    shape = "<p:sp><p:nvSpPr/><p:spPr/><p:txBody><a:p><a:r><a:t>{}</a:t></a:r></a:p></p:txBody></p:sp>"
    members = {
        "[Content_Types].xml": f'<Types><Override PartName="/ppt/presentation.xml" ContentType="{SLIDES}"/></Types>',
        "_rels/.rels": relations(("officeDocument", "ppt/presentation.xml")),
        "ppt/_rels/presentation.xml.rels": relations(*[("slide", f"slides/s{n}.xml") for n in (1, 2, 3)]),
        "ppt/presentation.xml": f"<p:presentation {spaces}><p:sldIdLst>"
        + "".join(f'<p:sldId id="{255 + n}" r:id="r{n}"/>' for n in (1, 2, 3)) + "</p:sldIdLst></p:presentation>",
    }  # fmt: skip
    for number, words in enumerate(slides, 1):
        tree = f"<p:cSld><p:spTree>{shape.format(words)}</p:spTree></p:cSld>"
        members[f"ppt/slides/s{number}.xml"] = f"<p:sld {spaces}>{tree}</p:sld>"
    package(path, members)
    return "slide 2"


def notebook(key: Passkey, seed: int) -> str:
    cells = [{"cell_type": "markdown", "source": text, "metadata": {}} for text in paragraphs(seed, key)]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})


def ipynb(path: Path, key: Passkey) -> str:
    path.write_text(notebook(key, 10), encoding="utf-8")
    return "cell 4"


def repository(path: Path, key: Passkey) -> str:
    package(path, {"r/README.md": filler(11, 1)[0], "r/study.ipynb": notebook(key, 12), "r/a.py": "x = 1\n"})
    return "study.ipynb, cell 4"


def srt(path: Path, key: Passkey) -> str:
    lines = [*filler(13, 6)[:5], key.sentence, *filler(14, 4)]
    cues = [f"{n}\n00:{n:02}:00,000 --> 00:{n:02}:50,000\n{line}\n" for n, line in enumerate(lines, 1)]
    path.write_text("\n".join(cues), encoding="utf-8")
    return "6:00"


def vtt(path: Path, key: Passkey) -> str:
    srt(path, key)
    path.write_text("WEBVTT\n\n" + path.read_text(encoding="utf-8").replace(",000", ".000"), encoding="utf-8")
    return "6:00"


# One row of the library each: no name is part of what another row says.
MAKERS: dict[str, Callable[[Path, Passkey], str]] = {
    "planted-pdf.pdf": pdf, "planted-markdown.md": text, "planted-html.html": html, "planted-saved.mhtml": mhtml,
    "planted-book.epub": epub, "planted-word.docx": docx, "planted-letter.odt": odt, "planted-memo.rtf": rtf,
    "planted-deck.pptx": pptx, "planted-lesson.ipynb": ipynb, "planted-project.zip": repository,
    "planted-film.srt": srt, "planted-talk.vtt": vtt,
}  # fmt: skip


def make(folder: Path) -> list[Asked]:
    """A file of each format, each with a fact of its own."""
    makers = MAKERS | ({"planted-scan.pdf": scan} if ocr.available() else {})
    keys = [Passkey(str(number)) for number in random.Random(1).sample(range(10_000, 100_000), len(makers))]
    named = zip(makers.items(), keys, strict=True)
    return [Asked(folder / name, key, made(folder / name, key)) for (name, made), key in named]


def ask(visit: Visit, asked: Asked, pictures: Path | None) -> Answered:
    """Ask about one file, and open the first passages until one holds the fact."""
    page = visit.page
    visit.tab("Library")
    visit.row(asked.path.stem).get_by_role("button", name="Ask").click()
    expect(page.locator(".lt-foot")).to_have_count(0)  # of the chat before
    visit.ask(asked.key.question, timeout_s=MINUTES_S)
    answer = page.locator("#talk .bot-row .lt-md").last.inner_text().strip()
    foot = page.locator(".lt-foot").last
    folded = foot.get_by_text("without finding an answer")
    if folded.count():
        folded.first.click()
    chips, seen = foot.locator(".lt-chip:visible"), []  # "Answer without" holds them once more, folded
    count = chips.count()
    for number in range(min(PASSAGES, count)):
        chips.nth(number).click()
        if count > 1:
            expect(page.locator(".lt-siblings span")).to_have_text(f"Passage {number + 1} of {count}")
        expect(page.locator(".lt-page .lt-where:visible, .lt-page .lt-mark:visible").first).to_be_in_viewport()
        marked = "".join(page.locator(".lt-page .lt-mark").all_text_contents())
        seen.append(page.locator(".lt-page header p").inner_text())
        if asked.key.number in marked:
            if pictures:
                page.wait_for_function("[...document.querySelectorAll('.lt-scan img')].every((one) => one.complete)")
                page.screenshot(path=pictures / f"{asked.path.name}.png")
            problem = "" if asked.is_at(seen[-1]) else f"opens at {seen[-1]!r} instead of {asked.label!r}"
            break
    else:
        problem = f"the fact is not among the first passages ({'; '.join(seen)})"
    at = seen[-1] if seen else ""
    return Answered(asked.path.name, asked.label, at, answer, asked.key.number in answer, problem)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each answer")
    parser.add_argument("--model", default=str(SHIPPED_MODEL), help="checkpoint folder (the model that ships)")
    parser.add_argument("--out", type=Path, default=RESULT, help="file for the answers")
    args = parser.parse_args()
    if find_chromium() is None:
        sys.exit("Chromium is not installed; install it, then run this again")
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    done = []
    expect.set_options(timeout=CLICK_S * 1000)
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        folder = Path(place)
        files = make(folder)
        command = ["-m", "app.cli", "serve", "--no-browser", "--port", "0", "--home", f"{place}/home"]
        command += ["--model", args.model]
        with serving(command, folder, MINUTES_S) as server, visiting(browser, server.url, start_s=MINUTES_S) as visit:
            expect(visit.page.locator(".lt-model")).to_contain_text("ready", timeout=MINUTES_S * 1000)
            visit.page.set_default_timeout(CLICK_S * 1000)
            visit.tab("Library")
            if ocr.available():
                visit.page.locator("#ocr input").check()
            visit.add(*(asked.path for asked in files), timeout_s=MINUTES_S)
            if args.pictures:
                visit.page.screenshot(path=args.pictures / "library.png", full_page=True)
            for asked in files:
                done.append(ask(visit, asked, args.pictures))
                said = done[-1].problem or f"right, at {done[-1].opened_at!r}; answer: {done[-1].answer[:60]!r}"
                print(f"{asked.path.name:21} {asked.label:22} {said}", flush=True)
            errors = list(visit.errors)
    right = sum(not one.problem for one in done)
    values = {"asked": [asdict(one) for one in done], "right": right, "of": len(done), "errors": errors}
    values |= {"in_answer": sum(one.in_answer for one in done), "model": Path(args.model).name, **machine.describe()}
    args.out.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{right} of {len(done)} right, {values['in_answer']} answers say it; errors: {errors or 'none'}")
    return 0 if right == len(done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
