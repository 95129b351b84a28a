"""Make the files of `formats.py`, each with every construct that its format has, and say which words stand in them.

    PYTHON_WITH_THE_LIBRARIES benchmarks/formats_made.py FOLDER

python-docx, python-pptx, nbformat, pandoc and LibreOffice (with Math, without which it drops formulas) write them.
Every construct holds a word of its own, such as `dx012`, so that a lost, doubled or moved one is seen. `expected.json`
has for each file the words in reading order, those that no reader sees, and labels of some.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
MORE = (
    f'xmlns:w="{W}" xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
    'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing" '
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape"'
)
BOX = "<w:txbxContent><w:p><w:r><w:t>dx020</w:t></w:r></w:p></w:txbxContent>"
RUNS = [
    "<w:r><w:t xml:space='preserve'>dx003 </w:t></w:r>",
    "<w:ins w:id='1' w:author='a'><w:r><w:t xml:space='preserve'>dx004 </w:t></w:r></w:ins>",
    "<w:del w:id='2' w:author='a'><w:r><w:delText>dx901 </w:delText></w:r></w:del>",
    "<w:moveTo w:id='3' w:author='a'><w:r><w:t xml:space='preserve'>dx005 </w:t></w:r></w:moveTo>",
    "<w:moveFrom w:id='4' w:author='a'><w:r><w:t xml:space='preserve'>dx902 </w:t></w:r></w:moveFrom>",
    "<w:fldSimple w:instr='DATE'><w:r><w:t xml:space='preserve'>dx006 </w:t></w:r></w:fldSimple>",
    "<w:r><w:fldChar w:fldCharType='begin'/></w:r><w:r><w:instrText>dx903</w:instrText></w:r>"
    "<w:r><w:fldChar w:fldCharType='separate'/></w:r><w:r><w:t xml:space='preserve'>dx007 </w:t></w:r>"
    "<w:r><w:fldChar w:fldCharType='end'/></w:r>",
    "<w:sdt><w:sdtContent><w:r><w:t xml:space='preserve'>dx008 </w:t></w:r></w:sdtContent></w:sdt>",
    "<w:smartTag w:uri='x' w:element='y'><w:r><w:t xml:space='preserve'>dx009 </w:t></w:r></w:smartTag>",
    "<w:bdo w:val='ltr'><w:r><w:t xml:space='preserve'>dx010 </w:t></w:r></w:bdo>",
    "<w:hyperlink w:anchor='top'><w:r><w:t xml:space='preserve'>dx011 </w:t></w:r></w:hyperlink>",
    "<w:r><w:t>dx012</w:t><w:br/><w:t>dx013</w:t></w:r>",
    "<w:r><w:ruby><w:rt><w:r><w:t>dx015</w:t></w:r></w:rt><w:rubyBase><w:r><w:t xml:space='preserve'> dx014</w:t></w:r>"
    "</w:rubyBase></w:ruby></w:r>",
    "<m:oMath><m:sSup><m:e><m:r><m:t>dx016</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>",
    "<w:r><w:rPr><w:vanish/></w:rPr><w:t>dx904</w:t></w:r>",
]
BOXED = (
    "<w:r><w:t xml:space='preserve'>dx018 </w:t></w:r><w:r><mc:AlternateContent><mc:Choice Requires='wps'><w:drawing>"
    "<wp:inline><wp:docPr id='9' name='b' descr='dx019'/><a:graphic><a:graphicData><wps:wsp><wps:txbx>"
    f"{BOX}</wps:txbx></wps:wsp></a:graphicData></a:graphic></wp:inline></w:drawing></mc:Choice><mc:Fallback><w:pict>"
    f"<v:shape><v:textbox>{BOX}</v:textbox></v:shape></w:pict></mc:Fallback></mc:AlternateContent></w:r>"
)
MARKDOWN = """---
title: md000
---

# md001

md002 with *md003*, `md004 code`, a formula $md005^n$ and a note.[^1] md006

[^1]: md007 in the note.

1. md008
2. md009
    - md010

| md011 | md012 |
|-------|-------|
| md013 | md014 |

> md015

```python
if md016:
    md017
```

md018
:   md019

## md020

$$\\frac{md021}{md022}$$

[md023](https://example.org/md900) and ![md024](none.png)

Line md025\\
md026 ~~md027~~ H~md028~O
"""
MARKDOWN_WORDS = [f"md{number:03d}" for number in (1, 2, 3, 4, 5, 6, 7, *range(8, 29))]
PAGE = """<!doctype html><html><head><title>ht900</title><script>ht901</script></head><body><nav>ht902</nav>
<main><h1>ht001</h1>ht002 loose<p>ht003 <b>ht004</b><i>x</i> <a href="#">ht005</a><sup><a href="#n1" id="r1">1</a></sup>
ht006</p><ul><li>ht007<ol start="4"><li>ht008</li></ol></li></ul><table><caption>ht010</caption><tr><th>ht011</th>
<th>ht012</th></tr><tr><td>ht013</td><td>ht014</td></tr></table><pre>ht015
    ht016</pre><blockquote>ht017</blockquote><dl><dt>ht018</dt><dd>ht019</dd></dl><details><summary>ht020</summary>
ht021</details><figure><img alt="ht022"><figcaption>ht023</figcaption></figure><p>ht024<br>ht025 ht026<wbr>x</p>
<ol><li id="n1">ht009 <a href="#r1">back</a></li></ol>
<div><template shadowrootmode="open"><p>ht027</p></template></div></main><footer>ht903</footer></body></html>"""
PAGE_WORDS = [f"ht{n:03d}" for n in (1, 2, 3, 4, 5, 6, 9, 7, 8, *range(10, 28))]


def made_docx(path: Path) -> dict[str, Any]:
    import docx
    from docx.oxml import parse_xml

    document = docx.Document()
    document.add_heading("dx001", 1)
    document.add_paragraph("dx002", style="List Number")
    for runs in (RUNS, [BOXED]):
        xml = f"<w:p {MORE}>{''.join(runs)}</w:p>"
        document.element.body.insert(len(document.element.body) - 1, parse_xml(xml))
    block = f"<w:sdt {MORE}><w:sdtContent><w:p><w:r><w:t>dx021</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(len(document.element.body) - 1, parse_xml(block))
    table = document.add_table(2, 2)
    for cell, word in zip([c for row in table.rows for c in row.cells], range(22, 26), strict=True):
        cell.text = f"dx{word:03d}"
    document.add_heading("dx026", 2)
    document.add_paragraph("dx027", style="List Bullet")
    document.save(path)
    words = [f"dx{number:03d}" for number in (*range(1, 17), *range(18, 28))]
    return {"words": words, "never": ["dx901", "dx902", "dx903", "dx904"],
            "labels": {"dx003": "dx001, paragraph 2", "dx027": "dx026, paragraph 1"}}  # fmt: skip


def made_pptx(path: Path) -> dict[str, Any]:
    from lxml import etree
    from pptx import Presentation
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Inches

    deck = Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text, first.placeholders[1].text = "pp001", "pp002\vpp003\npp004"
    group = first.shapes.add_group_shape()
    group.shapes.add_textbox(Inches(1), Inches(5), Inches(3), Inches(0.5)).text_frame.text = "pp005"
    first.notes_slide.notes_text_frame.text = "pp006"
    second = deck.slides.add_slide(deck.slide_layouts[5])
    second.shapes.title.text = "pp007"
    table = second.shapes.add_table(2, 2, Inches(1), Inches(1.5), Inches(5), Inches(1)).table
    for cell, word in zip([table.cell(r, c) for r in (0, 1) for c in (0, 1)], range(8, 12), strict=True):
        cell.text = f"pp{word:03d}"
    data = CategoryChartData()
    data.categories, _ = ["pp012"], data.add_series("pp013", (4.5,))
    second.shapes.add_chart(XL_CHART_TYPE.BAR_CLUSTERED, Inches(1), Inches(3), Inches(4), Inches(3), data)
    third = deck.slides.add_slide(deck.slide_layouts[6])
    third.shapes.add_textbox(Inches(1), Inches(4), Inches(3), Inches(1)).text_frame.text = "pp015"
    third.shapes.add_textbox(Inches(1), Inches(1), Inches(3), Inches(1)).text_frame.text = "pp014"
    shape = third.shapes.add_textbox(Inches(1), Inches(6), Inches(3), Inches(1))
    shape.text_frame.text = "pp016"
    mc = "http://schemas.openxmlformats.org/markup-compatibility/2006"
    choice = etree.Element(f"{{{mc}}}AlternateContent", nsmap={"mc": mc})
    etree.SubElement(choice, f"{{{mc}}}Choice", Requires="a14")
    shape._element.addprevious(choice)
    choice[0].append(shape._element)
    deck.save(path)
    return {"words": [f"pp{n:03d}" for n in range(1, 17)], "never": [], "free": ["pp012", "pp013"],
            "labels": {"pp005": "slide 1", "pp006": "slide 1", "pp013": "slide 2", "pp016": "slide 3"}}  # fmt: skip


def made_notebook(path: Path) -> dict[str, Any]:
    import nbformat
    from nbformat import v4

    cells = [v4.new_markdown_cell("# nb001\nnb002"), v4.new_code_cell("x = 'nb' + '003'\nprint(x)  # nb004"),
             v4.new_code_cell("'nb005'"), v4.new_raw_cell("nb006"), v4.new_code_cell("1 / 0  # nb007")]  # fmt: skip
    book = v4.new_notebook(cells=cells)
    try:
        from nbclient import NotebookClient

        NotebookClient(book, allow_errors=True, kernel_name="python3").execute()
    except Exception as error:
        print("the notebook was not run:", error, file=sys.stderr)
        cells[1].outputs = [v4.new_output("stream", name="stdout", text="nb003\n")]
    nbformat.write(book, path)
    return {"words": ["nb001", "nb002", "nb004", "nb003", "nb005", "nb006", "nb007"], "never": [],
            "twice": ["nb005", "nb007"], "labels": {"nb003": "cell 2", "nb006": "cell 4"}}  # fmt: skip


def made_epub(path: Path) -> dict[str, Any]:
    def page(body: str) -> str:
        return (
            '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml" '
            'xmlns:epub="http://www.idpf.org/2007/ops"><head><title/><script src="a.js"/></head>'
            f"<body>{body}</body></html>"
        )

    pages = {
        "b.xhtml": "ep001 loose<h1>ep002</h1><p>ep003<a epub:type='noteref' href='#f1'>1</a> "
        "<span epub:type='pagebreak' id='p5' title='5'/>ep005</p>"
        "<aside epub:type='footnote' id='f1'><p>ep004</p></aside>",
        "a.xhtml": "<h1>ep006</h1><p><![CDATA[ep007 < 1]]> ep008</p>"
        "<table><tr><th>ep009</th><td>ep010</td></tr></table>"
        "<svg xmlns='http://www.w3.org/2000/svg'><text>ep011</text></svg><p><ruby>ep012<rt>ep013</rt></ruby></p>",
        "n.xhtml": "<p>ep014</p>",
    }
    items = "".join(f'<item id="{n}" href="{n}" media-type="application/xhtml+xml"/>' for n in sorted(pages))
    nav = page(
        '<nav epub:type="toc"><ol><li><a href="b.xhtml">ep900 One</a></li><li><a href="a.xhtml">ep901 Two</a></li></ol>'
        '</nav><nav epub:type="page-list"><ol><li><a href="b.xhtml#p5">5</a></li></ol></nav>'
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
            '<rootfile full-path="o.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        )
        book.writestr(
            "o.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="i"><metadata '
            'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:identifier id="i">x</dc:identifier><dc:title>T</dc:title>'
            f'<dc:language>en</dc:language></metadata><manifest>{items}<item id="nav" href="nav.xhtml" '
            'media-type="application/xhtml+xml" properties="nav"/></manifest><spine><itemref idref="b.xhtml"/>'
            '<itemref idref="a.xhtml"/><itemref idref="n.xhtml" linear="no"/></spine></package>',
        )
        book.writestr("nav.xhtml", nav)
        for name, body in pages.items():
            book.writestr(name, page(body))
    return {"words": [f"ep{n:03d}" for n in (1, 2, 3, 5, 4, *range(6, 15))], "never": [], "free": ["ep004", "ep005"],
            "labels": {"ep003": "ep900 One, paragraph 2", "ep005": "page 5"}}  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, Any] = {
        "word.docx": made_docx(folder / "word.docx"), "deck.pptx": made_pptx(folder / "deck.pptx"),
        "run.ipynb": made_notebook(folder / "run.ipynb"), "book.epub": made_epub(folder / "book.epub"),
    }  # fmt: skip
    (folder / "page.html").write_text(PAGE, encoding="utf-8")
    unseen = ["ht901", "ht902", "ht903"]
    labels = {"ht024": "ht001, paragraph"}
    expected["page.html"] = {"words": PAGE_WORDS, "free": ["ht009"], "never": unseen, "labels": labels}
    cues = "".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\nsr00{n}\n\n" for n in range(1, 6))
    (folder / "talk.srt").write_text(cues, encoding="utf-8")
    (folder / "talk.vtt").write_text("WEBVTT\n\n" + cues.replace(",", "."), encoding="utf-8")
    talk = {"words": [f"sr00{n}" for n in range(1, 6)], "never": [], "labels": {"sr003": "0:03"}}
    expected |= {"talk.srt": talk, "talk.vtt": talk}
    source = folder / "source.md"
    source.write_text(MARKDOWN, encoding="utf-8")
    written = {"words": MARKDOWN_WORDS, "never": ["md900"], "free": ["md006", "md007", "md000"],
               "labels": {"md002": "md001, paragraph 1"}}  # fmt: skip
    for ending in ("docx", "odt", "rtf", "epub", "html"):
        name = f"pandoc.{ending}"
        subprocess.run(["pandoc", "-s", str(source), "-o", str(folder / name)], check=True, cwd=folder)
        words = [word for word in MARKDOWN_WORDS if (ending, word) != ("rtf", "md024")]  # it writes no picture there
        expected[name] = {**written, "words": words}
    for source_name, ending in (("pandoc.odt", "docx"), ("pandoc.docx", "odt"), ("pandoc.docx", "rtf")):
        out = folder / "office"
        command = ["soffice", "--headless", "--convert-to", ending, "--outdir", str(out), str(folder / source_name)]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
        name = f"libreoffice-{ending}.{ending}"
        (out / f"pandoc.{ending}").rename(folder / name)
        expected[name] = {**written, "labels": {}}
    source.unlink()
    (folder / "expected.json").write_text(json.dumps(expected, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
