import pytest
from format_maker import label_of

from app.errors import InputError
from app.ingest.load import load_document

OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
SPACES = (
    f'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:r="{OFFICE}" '
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
    'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
    'xmlns:a14="http://schemas.microsoft.com/office/drawing/2010/main" '
    'xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart" '
    'xmlns:dgm="http://schemas.openxmlformats.org/drawingml/2006/diagram" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
)
TYPE = "application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"


def relations(**targets):
    items = "".join(
        f'<Relationship Id="{id}" Type="{OFFICE}/{kind}" Target="{target}"/>' for id, (kind, target) in targets.items()
    )
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{items}</Relationships>'
    )


def shape(text, x=0, y=0, placeholder=None, more=""):
    place = f'<a:xfrm><a:off x="{x}" y="{y}"/></a:xfrm>' if placeholder is None else ""
    kind = f'<p:ph {placeholder}/>' if placeholder is not None else ""  # fmt: skip
    body = text if text.startswith("<") else f"<a:p><a:r><a:t>{text}</a:t></a:r></a:p>"
    return (
        f"<p:sp><p:nvSpPr><p:cNvPr id='1' {more}/><p:nvPr>{kind}</p:nvPr></p:nvSpPr><p:spPr>{place}</p:spPr>"
        f"<p:txBody>{body}</p:txBody></p:sp>"
    )


def slide(*shapes, root="sld"):
    return f"<p:{root} {SPACES}><p:cSld><p:spTree>{''.join(shapes)}</p:spTree></p:cSld></p:{root}>"


@pytest.fixture
def make(pack):
    """A function: XML of slides, in order, to a path; `related` are relations of the first, `more` other members."""

    def make(*slides, related=None, more=None, name="made.pptx"):
        ids = "".join(f'<p:sldId id="{256 + i}" r:id="s{i}"/>' for i in range(len(slides)))
        members = {
            "[Content_Types].xml": f'<Types><Override PartName="/ppt/presentation.xml" ContentType="{TYPE}"/></Types>',
            "_rels/.rels": relations(r1=("officeDocument", "ppt/presentation.xml")),
            "ppt/presentation.xml": f'<p:presentation {SPACES}><p:sldIdLst>{ids}</p:sldIdLst><p:sldSz cy="240"/></p:presentation>',
            # names do not tell the order: the relations do
            "ppt/_rels/presentation.xml.rels": relations(
                **{f"s{i}": ("slide", f"slides/slide{len(slides) - i}.xml") for i in range(len(slides))}
            ),
        }
        members |= {f"ppt/slides/slide{len(slides) - i}.xml": xml for i, xml in enumerate(slides)}
        members[f"ppt/slides/_rels/slide{len(slides)}.xml.rels"] = relations(**(related or {}))
        return pack(name, {**members, **(more or {})})

    return make


def texts(document):
    return [part.text for part in document.parts]


def test_slides_in_order_with_shapes_by_place(make):
    first = slide(
        shape("lower", y=200), shape("right", x=90, y=52), shape("left", x=10, y=50), shape("Tides", placeholder='type="title"'),
        shape("12", placeholder='type="sldNum"'), shape("unseen", more="hidden='1'"),
        f'<p:grpSp><p:grpSpPr><a:xfrm><a:off x="0" y="100"/></a:xfrm></p:grpSpPr>{shape("second", y=9)}{shape("first", y=0)}</p:grpSp>',
        "<p:pic><p:nvPicPr><p:cNvPr id='2' descr='A bell'/></p:nvPicPr><p:spPr><a:xfrm><a:off x='0' y='230'/></a:xfrm></p:spPr></p:pic>",
    )  # fmt: skip
    document = load_document(make(first, slide(shape("alpha_x000B_beta_x000B_gamma"))))
    assert document.kind == "slides"
    assert texts(document) == [
        "Tides\n\nleft\n\nright\n\nfirst\nsecond\n\nlower\n\n[A bell]", "alpha\nbeta\ngamma",
    ]  # fmt: skip
    assert [(part.label, part.chapter) for part in document.parts] == [("slide 1", "Tides"), ("slide 2", None)]
    assert label_of(document, "gamma") == "slide 2"


def test_a_placeholder_stands_where_its_layout_says(make):
    body, other = 'type="body" idx="1"', 'type="body" idx="2"'
    layout = slide(
        shape("x", placeholder=body).replace("<p:spPr>", '<p:spPr><a:xfrm><a:off x="0" y="200"/></a:xfrm>'),
        shape("x", placeholder=other).replace("<p:spPr>", '<p:spPr><a:xfrm><a:off x="0" y="20"/></a:xfrm>'),
        root="sldLayout",
    )
    path = make(
        slide(shape("below", placeholder=body), shape("above", placeholder=other)),
        related={"l": ("slideLayout", "../slideLayouts/l.xml")},
        more={"ppt/slideLayouts/l.xml": layout},
    )
    assert texts(load_document(path)) == ["above\n\nbelow"]


def test_paragraphs_formulas_tables_charts_diagrams_and_notes(make):
    numbered = '<a:p><a:pPr><a:buAutoNum type="{}"/></a:pPr><a:r><a:t>{}</a:t></a:r></a:p>'
    runs = (
        numbered.format("arabicPeriod", "one") + numbered.format("arabicPeriod", "two") + "<a:p/>"
        + '<a:p><a:pPr lvl="1"><a:buChar char="x"/></a:pPr><a:r><a:t>po</a:t></a:r><a:r><a:t>int</a:t></a:r><a:br/>'
        + '<a:fld type="datetime1"><a:t>2020</a:t></a:fld></a:p>'
        + "<a:p><mc:AlternateContent><mc:Choice><a14:m><m:oMath><m:r><m:t>E=mc</m:t></m:r></m:oMath></a14:m></mc:Choice>"
        + "<mc:Fallback><a:r><a:t>twin</a:t></a:r></mc:Fallback></mc:AlternateContent></a:p>"
    )  # fmt: skip
    equation = f"<mc:AlternateContent><mc:Choice>{shape(runs)}</mc:Choice><mc:Fallback>{shape('twin')}</mc:Fallback></mc:AlternateContent>"
    cells = [
        f"<a:tc><a:txBody><a:p><a:r><a:t>{t}</a:t></a:r></a:p></a:txBody></a:tc>"
        for t in ("Port", "High", "Brest", "7.1")
    ]
    table = f"<a:tbl><a:tr>{cells[0]}{cells[1]}</a:tr><a:tr>{cells[2]}{cells[3]}</a:tr></a:tbl>"
    frame = '<p:graphicFrame><p:xfrm><a:off x="0" y="{}"/></p:xfrm><a:graphic><a:graphicData>{}</a:graphicData></a:graphic></p:graphicFrame>'
    chart = (
        f"<c:chartSpace {SPACES}><c:chart><c:title><c:tx><c:rich><a:p><a:r><a:t>Height</a:t></a:r></a:p></c:rich></c:tx></c:title>"
        "<c:ser><c:tx><c:strRef><c:strCache><c:pt><c:v>metres</c:v></c:pt></c:strCache></c:strRef></c:tx>"
        "<c:cat><c:strRef><c:strCache><c:pt><c:v>noon</c:v></c:pt></c:strCache></c:strRef></c:cat>"
        "<c:val><c:numRef><c:numCache><c:pt><c:v>3.5</c:v></c:pt></c:numCache></c:numRef></c:val></c:ser></c:chart></c:chartSpace>"
    )
    data = (
        f"<dgm:dataModel {SPACES}><dgm:ptLst><dgm:pt><dgm:t><a:p><a:r><a:t>ebb</a:t></a:r></a:p></dgm:t></dgm:pt>"
        '<dgm:pt type="pres"><dgm:t><a:p><a:r><a:t>twin</a:t></a:r></a:p></dgm:t></dgm:pt></dgm:ptLst></dgm:dataModel>'
    )
    notes = slide(shape("7", placeholder='type="sldNum"'), shape("said aloud"), root="notes")
    path = make(
        slide(equation, frame.format(40, table), frame.format(80, '<c:chart r:id="c"/>'), frame.format(120, '<dgm:relIds r:dm="d"/>')),
        related={"c": ("chart", "../charts/c.xml"), "d": ("diagramData", "../diagrams/d.xml"), "n": ("notesSlide", "../notes/n.xml")},
        more={"ppt/charts/c.xml": chart, "ppt/diagrams/d.xml": data, "ppt/notes/n.xml": notes},
    )  # fmt: skip
    assert texts(load_document(path)) == [
        "1. one\n2. two\n  - point\n2020\n$E=mc$\n\nPort | High\nBrest | 7.1\n\nHeight\n| metres\nnoon | 3.5\n\nebb\n\n"
        "Notes: said aloud"
    ]


def test_wrong_files(make, tmp_path):
    make(name="none.pptx")
    make(slide(shape("")), name="blank.pptx")
    good = make(slide(shape("words"))).read_bytes()
    (tmp_path / "cut.pptx").write_bytes(good[:-30])
    for name, message in {
        "none.pptx": r"this presentation has no slides \(0\)",
        "blank.pptx": "this PowerPoint file holds no text",
        "cut.pptx": "damaged or cut off",
    }.items():
        with pytest.raises(InputError, match=rf"^{name}: .*{message}"):
            load_document(tmp_path / name)
