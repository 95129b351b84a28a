import pytest
from format_maker import label_of

from app.errors import InputError
from app.ingest.load import load_document

HEAD = (
    r"{\rtf1\ansi\ansicpg1252\deff0{\fonttbl{\f0\fswiss Arial;}{\f1\fcharset204 Arial Cyr;}{\f2\fcharset128 MS Mincho;}}"
    r"{\colortbl;\red0\green0\blue0;}{\stylesheet{\s0 Normal;}{\s1\outlinelevel0 heading 1;}{\s2 heading 2;}}"
    r"{\info{\title unseen}}{\*\generator unseen;}{\header unseen}"
)


@pytest.fixture
def read(tmp_path):
    def read(body, name="a.rtf", head=HEAD):
        (tmp_path / name).write_bytes((head + body + "}").encode("cp1252"))
        return load_document(tmp_path / name)

    return read


def text(document):
    return "\n\n".join(part.text for part in document.parts)


def test_characters(read):
    document = read(
        r"\pard Gr\'f6\'dfe \u8364?5 \u-10179 ?\u-8704 ? \{x\}\~y\_z\emdash\tab t\line n\par"
        r"{\f1 \'cf\'f0\'e8} {\f2 \'93\'fa\'96\'7b}\uc2\u945 ab c{\v unseen}{\deleted gone}{\revised new}\par"
        r"{\upr{old}{\*\ud{\u1046 ?}}}\par{\field{\*\fldinst HYPERLINK}{\fldrslt linked}}{\*\unknown unseen}"
        r"{\pict 0011}{\pict\bin4 }}}}}"
        "\r\nsame \r\nline"
    )
    assert text(document) == "Größe €5 😀 {x} y-z—\tt\nn\n\nПри 日本α cnew\n\nЖ\n\nlinkedsame line"


def test_headings_lists_tables_and_notes(read):
    document = read(
        r"\pard front\par\pard\s1 Tides\par\pard alpha{\super\chftn}{\footnote {\super\chftn} the note\par goes on} end\par"
        r"\pard\s2 Sea\par\pard{\listtext 1.\tab}one\par{\listtext 2.\tab}two\par\pard{\pntext\'b7\tab}point\par"
        r"\trowd\cellx1\cellx2\pard\intbl Port\cell High\par water\cell\row\pard\intbl Brest\cell 7.1\cell\row"
        r"\pard anchor{\shp{\*\shpinst{\sp{\sn a}{\sv b}}{\shptxt boxed\par}}{\shprslt twin}} end\par{\*\annotation said}\pard last"
    )
    assert text(document) == (
        "front\n\nTides\n\nalpha[1] end\n[1] the note goes on\n\nSea\n\n1. one\n2. two\n- point\n\nPort | High water\n"
        "Brest | 7.1\n\nanchor end\n\nboxed\n\nlast"
    )
    assert document.notes == ("1 comments are not read",)
    assert [label_of(document, word) for word in ("front", "alpha", "one")] == [
        "paragraph 1", "Tides, paragraph 1", "Sea, paragraph 1",
    ]  # fmt: skip


def test_by_its_content(read):
    assert read(r"\pard words", name="a.docx").notes == (
        "its name ends in .docx, but it is a RTF file and was read as one",
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"words", r"no RTF, it starts with b'words'"), (b"{\\rtf1}", "this RTF file holds no text"),
     (b"{\\rtf1" + b"{" * 3000, "nested more than 2,000 deep")],
)  # fmt: skip
def test_wrong_files(data, message, tmp_path):
    (tmp_path / "a.rtf").write_bytes(data)
    with pytest.raises(InputError, match=rf"^a\.rtf: .*{message}"):
        load_document(tmp_path / "a.rtf")


def test_a_cut_file_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "a.rtf").write_bytes(rb"{\rtf1\ansi{\b words that")
    document = load_document(tmp_path / "a.rtf")
    assert document.parts[0].text == "words that"
    assert document.notes == ("the file is cut off; what was there was read",)
