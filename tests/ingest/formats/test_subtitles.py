import pytest

from app.errors import ConfigError, InputError
from app.ingest import spans
from app.ingest.load import load_document

SRT = """1
00:00:01,000 --> 00:00:03,000
{\\an8}<i>Hello</i> there,
<font color="#fff">friend</font>.

2
01:02:03,500 --> 01:02:05,000
- 2001
- 1 < 2
3
01:02:06,000 --> 01:02:07,000
No blank line before.
"""

VTT = """WEBVTT - title
Kind: captions

STYLE
::cue { color: red }

NOTE not said
at all

00:01.000 --> 00:03.000 align:start position:0%
<v Mary Ann>Fish &amp; chips

intro
00:00:10.000 --> 00:00:12.000
the first line

00:00:12.000 --> 00:00:12.010
the first line

00:00:12.010 --> 00:00:14.000
the first line
the <00:00:13.000><c>second</c> line

00:00:20.000 --> 00:00:21.000
the second line

00:00:22.000 --> 00:00:23.000
<ruby>潮<rt>shio</rt></ruby> is tide
"""


def read(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return load_document(path)


def places(part, *words):
    return [spans.label(part, start := part.text.index(word), start + 1) for word in words]


def test_srt(tmp_path):
    document = read(tmp_path / "a.srt", SRT.replace("\n", "\r\n"))
    (part,) = document.parts
    assert document.kind == "captions"
    assert part.text == "Hello there,\nfriend.\n- 2001\n- 1 < 2\nNo blank line before."
    assert places(part, "friend", "2001", "No") == ["0:01", "1:02:03", "1:02:06"]


def test_vtt_reads_rolling_lines_once_and_said_again_twice(tmp_path):
    (part,) = read(tmp_path / "a.vtt", VTT).parts
    assert part.text == "Mary Ann: Fish & chips\nthe first line\nthe second line\nthe second line\n潮(shio) is tide"
    assert places(part, "Mary", "first") == ["0:01", "0:10"]


def test_webvtt_is_known_by_its_first_line(tmp_path):
    document = read(tmp_path / "a.txt", "\ufeff" + VTT)
    assert document.kind == "captions"
    assert document.notes == ("its name ends in .txt, but it is a subtitle file and was read as one",)


def test_the_encoding_is_guessed_as_for_texts(tmp_path):
    document = read(tmp_path / "a.srt", "1\n00:00:01,000 --> 00:00:02,000\nÜber die Brücke, déjà vu\n", "cp1252")
    assert document.parts[0].text == "Über die Brücke, déjà vu"
    assert document.notes


def test_no_caption(tmp_path):
    with pytest.raises(InputError, match=r"^a\.srt: no caption in it"):
        read(tmp_path / "a.srt", "just words\n")


@pytest.mark.parametrize("name", ["a.srt", "a.html"])
def test_a_chosen_encoding_holds_and_makes_another_document(tmp_path, name):
    path = tmp_path / name
    path.write_bytes("1\n00:00:01,000 --> 00:00:02,000\nγειά\n<p>γειά</p>".encode("cp1253"))
    found, chosen = load_document(path), load_document(path, encoding="cp1253")
    assert "γειά" in chosen.parts[0].text and found.sha256 != chosen.sha256
    assert found.keep_file and chosen.keep_file
    with pytest.raises(ConfigError, match="encoding 'klingon': not known"):
        load_document(path, encoding="klingon")
    path.write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n<p>hello</p>")
    assert not load_document(path).keep_file
