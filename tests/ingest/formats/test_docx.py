import pytest
from format_maker import label_of, words

from app.errors import InputError
from app.ingest.load import load_document

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
SPACES = " ".join(
    f'xmlns:{prefix}="{uri}"'
    for prefix, uri in {
        "w": W,
        "r": "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
        "m": "http://schemas.openxmlformats.org/officeDocument/2006/math",
        "mc": "http://schemas.openxmlformats.org/markup-compatibility/2006",
        "wp": "http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing",
        "wps": "http://schemas.microsoft.com/office/word/2010/wordprocessingShape",
        "c": "http://schemas.openxmlformats.org/drawingml/2006/chart",
        "a": "http://schemas.openxmlformats.org/drawingml/2006/main",
        "v": "urn:schemas-microsoft-com:vml",
    }.items()
)
TYPES = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def relations(**targets):
    items = "".join(
        f'<Relationship Id="{id}" Type="{RELATIONS}/{kind}" Target="{target}"/>'
        for id, (kind, target) in targets.items()
    )
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{items}</Relationships>'
    )


@pytest.fixture
def make(pack):
    """A function: XML of the body, and of other parts by name (styles, numbering, footnotes ...), to a path."""

    def make(body, name="made.docx", **parts):
        members = {
            "[Content_Types].xml": f'<Types><Override PartName="/word/document.xml" ContentType="{TYPES}"/></Types>',
            "_rels/.rels": relations(r1=("officeDocument", "word/document.xml")),
            "word/_rels/document.xml.rels": relations(**{n: (n, f"{n}.xml") for n in parts}),
            "word/document.xml": f"<w:document {SPACES}><w:body>{body}</w:body></w:document>",
        }
        return pack(name, members | {f"word/{n}.xml": f"<w:{n} {SPACES}>{xml}</w:{n}>" for n, xml in parts.items()})

    return make


def r(text, properties=""):
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def p(*runs, properties=""):
    return f"<w:p><w:pPr>{properties}</w:pPr>{''.join(r(run) if '<' not in run else run for run in runs)}</w:p>"


def text(document):
    return "\n\n".join(part.text for part in document.parts)


def test_runs_of_every_kind(make):
    field = '<w:r><w:fldChar w:fldCharType="{}"/></w:r>'
    body = (
        p("plain ", "<w:ins>" + r("inserted ") + "</w:ins>", "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>",
          "<w:moveTo>" + r("moved ") + "</w:moveTo>", "<w:moveFrom>" + r("moved ") + "</w:moveFrom>",
          '<w:fldSimple w:instr="DATE">' + r("simple ") + "</w:fldSimple>",
          field.format("begin"), "<w:r><w:instrText>PAGE</w:instrText></w:r>", r("instruction"),
          field.format("separate"), r("result "), field.format("end"),
          "<w:sdt><w:sdtContent>" + r("control ") + "</w:sdtContent></w:sdt>",
          '<w:smartTag w:element="x">' + r("smart ") + "</w:smartTag>",
          '<w:bdo w:val="rtl">' + r("turned ") + "</w:bdo>",
          '<w:dir w:val="rtl">' + r("directed ") + "</w:dir>",
          '<w:hyperlink r:id="x">' + r("linked ") + "</w:hyperlink>",
          r("hidden", "<w:vanish/>"),
          "<w:r><w:t>no</w:t><w:noBreakHyphen/><w:t>break</w:t><w:br/><w:t>line</w:t></w:r>",
          "<w:r><w:ruby><w:rt><w:r><w:t>kan</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>漢</w:t></w:r></w:rubyBase></w:ruby></w:r>",
          r("10"), r("2", '<w:vertAlign w:val="superscript"/>'), '<w:r><w:sym w:font="Symbol" w:char="F061"/></w:r>')
        + "<w:sdt><w:sdtContent>" + p("block control") + "</w:sdtContent></w:sdt>"
        + p("first half ", properties="<w:rPr><w:del/></w:rPr>") + p("second half")
        + p("O", properties='<w:framePr w:dropCap="drop"/>') + p("nce upon")
    )  # fmt: skip
    lines = text(load_document(make(body))).split("\n\n")
    assert lines[0] == (
        "plain inserted moved simple result control smart turned directed linked no-break\nline漢(kan)10²α"
    )
    assert lines[1:] == ["block control", "first half second half", "Once upon"]


STYLES = """<w:style w:type="paragraph" w:default="1" w:styleId="N"><w:name w:val="Normal"/></w:style>
<w:style w:type="paragraph" w:styleId="H1"><w:name w:val="heading 1"/><w:pPr><w:outlineLvl w:val="0"/></w:pPr></w:style>
<w:style w:type="paragraph" w:styleId="H2"><w:name w:val="own"/><w:basedOn w:val="H1"/></w:style>
<w:style w:type="paragraph" w:styleId="C"><w:name w:val="Source Code"/></w:style>"""
NUMBERING = """<w:abstractNum w:abstractNumId="0">
<w:lvl w:ilvl="0"><w:start w:val="3"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>
<w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1.%2)"/></w:lvl></w:abstractNum>
<w:abstractNum w:abstractNumId="1">
<w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="x"/></w:lvl></w:abstractNum>
<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>
<w:num w:numId="3"><w:abstractNumId w:val="0"/>
<w:lvlOverride w:ilvl="0"><w:startOverride w:val="1"/></w:lvlOverride></w:num>"""


def numbered(number, level=0):
    return f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'


def test_headings_and_list_numbers(make):
    style = '<w:pStyle w:val="{}"/>'
    body = (
        p("Front") + p("Chapter", properties=style.format("H1")) + p("alpha")
        + p("three", properties=numbered(1)) + p("sub", properties=numbered(1, 1)) + p("four", properties=numbered(1))
        + p("again", properties=numbered(1, 1)) + p("point", properties=numbered(2))
        + p("one", properties=numbered(3)) + p("plain", properties=numbered(0))
        + p("Own", properties=style.format("H2")) + p("beta")
        + p("if x:", properties=style.format("C")) + p("    y", properties=style.format("C"))
    )  # fmt: skip
    document = load_document(make(body, styles=STYLES, numbering=NUMBERING))
    assert text(document) == (
        "Front\n\nChapter\n\nalpha\n\n3. three\n  3.a) sub\n4. four\n  4.a) again\n- point\n1. one\n\nplain\n\n"
        "Own\n\nbeta\n\nif x:\n    y"
    )
    assert [label_of(document, word) for word in ("Front", "alpha", "beta")] == [
        "paragraph 1", "Chapter, paragraph 1", "Own, paragraph 1",
    ]  # fmt: skip


def test_notes_formulas_boxes_and_pictures_at_their_place(make):
    note = '<w:footnote w:id="2">' + p("<w:r><w:footnoteRef/></w:r>", "the note") + p("goes on") + "</w:footnote>"
    end = '<w:endnote w:id="1">' + p("the endnote") + "</w:endnote>"
    box = "<w:txbxContent>" + p("boxed") + "</w:txbxContent>"
    drawing = (
        f"<w:drawing><wp:inline><wp:docPr id='1' descr='A bell'/><wps:txbx>{box}</wps:txbx></wp:inline></w:drawing>"
    )
    twin = f"<w:pict><v:textbox>{box}</v:textbox></w:pict>"
    formula = (
        "<m:oMath><m:sSup><m:e><m:r><m:t>x</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>"
    )
    body = (
        p("call", '<w:r><w:footnoteReference w:id="2"/></w:r>', '<w:r><w:endnoteReference w:id="1"/></w:r>')
        + p("anchor ", "<w:r><mc:AlternateContent><mc:Choice>" + drawing + "</mc:Choice><mc:Fallback>" + twin
            + "</mc:Fallback></mc:AlternateContent></w:r>", " end")
        + p("so ", formula) + p(f"<m:oMathPara>{formula}</m:oMathPara>") + p("last")
    )  # fmt: skip
    document = load_document(make(body, footnotes=note, endnotes=end, comments="<w:comment/><w:comment/>"))
    assert text(document) == (
        "call[1][i]\n[1] the note goes on\n[i] the endnote\n\nanchor [A bell] end\n\nboxed\n\n"
        "so $x^{2}$\n\n$x^{2}$\n\nlast"
    )
    assert document.notes == ("2 comments are not read",)


def cell(*content, properties=""):
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{''.join(content)}</w:tc>"


def test_tables_are_rows(make):
    head = cell(p("Port")) + "<w:sdt><w:sdtContent>" + cell(p("High"), p("water")) + "</w:sdtContent></w:sdt>"
    rows = [head, cell(p("Brest")) + cell(p("7.1"), properties='<w:vMerge w:val="restart"/>'),
            cell(p("Hull")) + cell(p(""), properties="<w:vMerge/>"), cell(p("")) + cell(p("last")),
            cell(p("wide"), properties='<w:gridSpan w:val="2"/>') + cell(p("third"))]  # fmt: skip
    gone = "<w:tr><w:trPr><w:del/></w:trPr>" + cell(p("deleted")) + "</w:tr>"
    table = "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in rows) + gone + "</w:tbl>"
    layout = "<w:tbl><w:tr>" + cell(p("left"), table.replace("Brest", "Nantes")) + cell(p("right")) + "</w:tr></w:tbl>"
    assert text(load_document(make(p("before") + table + layout))) == (
        "before\n\nPort | High water\nBrest | 7.1\nHull |\n| last\nwide |  | third\n\n"
        "left\n\nPort | High water\nNantes | 7.1\nHull |\n| last\nwide |  | third\n\nright"
    )


def test_pages_where_word_noted_them(make):
    noted, page = "<w:r><w:lastRenderedPageBreak/></w:r>", '<w:r><w:br w:type="page"/></w:r>'
    roman = '<w:sectPr><w:pgNumType w:fmt="lowerRoman"/></w:sectPr>'
    body = (
        p("alpha") + p("beta ", noted, "gamma") + p("end", properties=roman) + p(noted, "delta", page)
        + p(noted, "epsilon") + '<w:sectPr><w:pgNumType w:start="1"/></w:sectPr>'
    )  # fmt: skip
    document = load_document(make(body))
    assert [label_of(document, word) for word in ("alpha", "beta", "gamma", "delta", "epsilon")] == [
        "page i", "page i", "page ii", "page 1", "page 2",
    ]  # fmt: skip
    assert label_of(load_document(make(p("alpha", page) + p("beta"))), "beta") == "paragraph 2"


def test_by_its_content_and_wrong_files(make, pack, tmp_path):
    path = make(p("words"))
    path.rename(tmp_path / "a.pptx")
    document = load_document(tmp_path / "a.pptx")
    assert (document.kind, words(document)) == ("document", ["words"])
    assert document.notes == ("its name ends in .pptx, but it is a Word file and was read as one",)
    data = (tmp_path / "a.pptx").read_bytes()
    (tmp_path / "cut.docx").write_bytes(data[:-40])
    locked = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500) + "EncryptedPackage".encode("utf-16-le")
    (tmp_path / "locked.docx").write_bytes(locked)
    (tmp_path / "old.docx").write_bytes(locked[:400])
    make("<w:p><w:unclosed></w:p>", name="broken.docx")
    make("", name="empty.docx")
    pack("zip.docx", {"a.txt": "x"})
    for name, message in {
        "cut.docx": "damaged or cut off",
        "locked.docx": "encrypted with a password",
        "old.docx": r"a file of old Office versions",
        "broken.docx": r'"word/document.xml" in it is damaged',
        "empty.docx": "this Word file holds no text",
        "zip.docx": "not an office file of its kind",
    }.items():
        with pytest.raises(InputError, match=rf"^{name}: .*{message}"):
            load_document(tmp_path / name)
