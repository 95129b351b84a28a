import pytest
from format_maker import label_of

from app.errors import InputError
from app.ingest.load import load_document

SPACES = " ".join(
    f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for prefix, name in {"office": "office", "text": "text", "table": "table", "draw": "drawing", "style": "style",
                         "svg": "svg-compatible"}.items()
) + ' xmlns:xlink="http://www.w3.org/1999/xlink"'  # fmt: skip
STYLES = """<text:list-style style:name="L">
<text:list-level-style-number text:level="1" style:num-format="1" style:num-suffix="." text:start-value="2"/>
<text:list-level-style-number text:level="2" style:num-format="a" style:num-suffix=")" text:display-levels="2"/>
</text:list-style>
<text:list-style style:name="B"><text:list-level-style-bullet text:level="1" text:bullet-char="x"/></text:list-style>"""


@pytest.fixture
def make(pack):
    """A function: XML of the text to a path."""

    def make(body, name="made.odt", **more):
        content = (
            f"<office:document-content {SPACES}><office:automatic-styles>{STYLES}</office:automatic-styles>"
            f"<office:body><office:text>{body}</office:text></office:body></office:document-content>"
        )
        members = {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content}
        return pack(name, {**members, **{key.replace("__", "/"): value for key, value in more.items()}})

    return make


def p(text):
    return f"<text:p>{text}</text:p>"


def text(document):
    return "\n\n".join(part.text for part in document.parts)


def test_paragraphs_and_what_stands_in_them(make):
    note = '<text:note><text:note-citation>{}</text:note-citation><text:note-body>{}</text:note-body></text:note>'  # fmt: skip
    body = (
        "<text:tracked-changes><text:changed-region>" + p("deleted") + "</text:changed-region></text:tracked-changes>"
        + p("front") + '<text:h text:outline-level="1">Tides</text:h>'
        + p('  a<text:s text:c="2"/>b <text:span>sp\n an</text:span><text:tab/>c<text:line-break/>d')
        + p("call" + note.format("1", p("the note") + p("goes on")) + " <office:annotation>" + p("comment")
            + "</office:annotation>end")
        + p("<text:ruby><text:ruby-base>漢</text:ruby-base><text:ruby-text>kan</text:ruby-text></text:ruby>")
        + p('pic <draw:frame><draw:image/><svg:desc>A bell</svg:desc></draw:frame>')
        + p("anchor<draw:frame><draw:text-box>" + p("boxed") + "</draw:text-box></draw:frame>")
        + p('so <draw:frame><draw:object xlink:href="./Object 1"/></draw:frame>')
        + "<text:section>" + p("inside") + "</text:section>"
    )  # fmt: skip
    formula = '<math xmlns="http://www.w3.org/1998/Math/MathML"><mfrac><mi>a</mi><mi>b</mi></mfrac></math>'
    document = load_document(make(body, **{"Object 1__content.xml": formula}))
    assert text(document) == (
        "front\n\nTides\n\na  b sp an\tc\nd\n\ncall[1] end\n[1] the note goes on\n\n漢(kan)\n\npic [A bell]\n\nanchor\n\nboxed\n\n"
        r"so $\frac{a}{b}$" + "\n\ninside"
    )
    assert document.kind == "document" and document.notes == ("1 comments are not read",)
    assert [label_of(document, word) for word in ("front", "inside")] == ["paragraph 1", "Tides, paragraph 8"]


def items(*texts):
    return "".join(f"<text:list-item>{text}</text:list-item>" for text in texts)


def test_lists_and_tables(make):
    cell = "<table:table-cell>{}</table:table-cell>"
    row = "<table:table-row>{}</table:table-row>"
    inner = "<text:list>" + items(p("deep")) + "</text:list>"
    head = "<table:table-header-rows>" + row.format(cell.format(p("Port")) + cell.format(p("High") + p("water")))
    head += "</table:table-header-rows>"
    table = f"<table:table>{head}{row.format(cell.format(p('Brest')) + cell.format(p('7.1')))}"
    table += row.format(cell.format(p("all")) + "<table:covered-table-cell/>") + "</table:table>"
    body = (
        '<text:list text:style-name="L">' + items(p("two") + inner, p("three") + p("more")) + "</text:list>" + p("between")
        + '<text:list text:style-name="L" text:continue-numbering="true">' + items(p("four")) + "</text:list>"
        + '<text:list text:style-name="B">' + items(p("point")) + "</text:list>" + table
    )  # fmt: skip
    assert text(load_document(make(body))) == (
        "2. two\n  2.a) deep\n3. three\nmore\n\nbetween\n\n4. four\n\n- point\n\nPort | High water\nBrest | 7.1\nall |"
    )


def test_pages_where_they_are_noted(make):
    body = p("alpha") + "<text:soft-page-break/>" + p("beta<text:soft-page-break/> gamma")
    document = load_document(make(body))
    assert [label_of(document, word) for word in ("alpha", "beta", "gamma")] == ["page 1", "page 2", "page 3"]


def test_wrong_files(make, pack, tmp_path):
    locked = "<manifest><file-entry><encryption-data/></file-entry></manifest>"
    make(p("x"), name="locked.odt", **{"META-INF__manifest.xml": locked})
    make("", name="empty.odt")
    pack("sheet.odt", {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<a/>"})
    (tmp_path / "cut.odt").write_bytes(make(p("x")).read_bytes()[:-30])
    for name, message in {
        "locked.odt": "encrypted with a password",
        "empty.odt": "this OpenDocument text holds no text",
        "sheet.odt": "no text document",
        "cut.odt": "damaged or cut off",
    }.items():
        with pytest.raises(InputError, match=rf"^{name}: .*{message}"):
            load_document(tmp_path / name)
