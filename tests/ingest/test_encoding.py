import pytest

from app.errors import CancelledError, ConfigError, InputError
from app.ingest import encoding as encodings
from app.ingest.encoding import MOST_BLANKS, decode

SAMPLES = {
    "cp1252": "Le café était fermé. “Où êtes-vous?” L’hôtel coûte 30 €, naïve Straße.",
    "cp1251": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "koi8-r": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "cp866": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "mac-cyrillic": "Все смешалось в доме Облонских. Жена узнала, что муж был в связи с француженкою в их доме.",
    "cp1253": "Σε γνωρίζω από την κόψη του σπαθιού την τρομερή, σε γνωρίζω από την όψη που με βία μετράει τη γη.",
    "iso8859-7": "Άνδρα μοι έννεπε, Μούσα, πολύτροπον. Άλλοτε η Αθήνα ήταν η πιο όμορφη πόλη της Ελλάδας.",
    "cp737": "Σε γνωρίζω από την κόψη του σπαθιού την τρομερή, σε γνωρίζω από την όψη που με βία μετράει τη γη.",
    "cp1255": "בראשית ברא אלהים את השמים ואת הארץ, והארץ היתה תהו ובהו וחשך על פני תהום.",
    "cp862": "בראשית ברא אלהים את השמים ואת הארץ, והארץ היתה תהו ובהו וחשך על פני תהום.",
    "cp1254": "Korkma, sönmez bu şafaklarda yüzen al sancak; sönmeden yurdumun üstünde tüten en son ocak. Işığı gördü.",
    "cp850": "Le café était fermé; où êtes-vous? L'hôtel coûte cher, ça va être à côté de la forêt, déjà très âgée.",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy; řeřicha, šťastné děti a černý tučňák.",
    "mac-roman": "Le café était fermé; où êtes-vous? L'hôtel coûte cher, ça va être à côté de la forêt, déjà âgée.",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "euc_jp": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "iso2022_jp": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "gb18030": "满纸荒唐言，一把辛酸泪。都云作者痴，谁解其中味？",
    "big5": "滾滾長江東逝水，浪花淘盡英雄。是非成敗轉頭空。",
    "euc_kr": "나는 고양이로소이다. 이름은 아직 없다. 어디서 태어났는지 모른다.",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_needs_no_note(encoding):
    assert decode("naïve 猫\r\nß\r".encode(encoding), "x.txt") == ("naïve 猫\nß\n", None)


@pytest.mark.parametrize("text", ["Hello, that is text.\n", "Привет, мир и люди\n", "满纸荒唐言，\n谁解其中味？\n"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_encodings_need_no_mark(encoding, text):
    assert decode(text.encode(encoding), "x.txt") == (text, f"no mark of its encoding: read as {encoding}")


@pytest.mark.parametrize("encoding", SAMPLES)
def test_other_encodings_are_found_and_named(encoding):
    text, note = decode((SAMPLES[encoding] + "\n").encode(encoding) * 3, "x.txt")
    assert text == (SAMPLES[encoding] + "\n") * 3
    assert note.startswith("not UTF-8: read as ") and "unknown" not in note


def test_few_accents_in_a_long_text_are_looked_for():
    plain = "Nothing but plain words on this line of the book.\n" * 3_000
    text, note = decode(plain.encode() + (SAMPLES["cp1250"] + "\n").encode("cp1250") + plain.encode(), "x.txt")
    assert SAMPLES["cp1250"] in text and "cp1250" in note


@pytest.mark.parametrize("encoding", ["cp1252", "cp1250", "cp1251", "cp1253"])
def test_a_stray_byte_is_one_wrong_letter(encoding):
    stray = next(bytes([byte]) for byte in range(128, 256) if not bytes([byte]).decode(encoding, "ignore"))
    data = (SAMPLES[encoding] + "\n").encode(encoding) * 12
    text, note = decode(data[:400] + stray + data[400:], "x.txt")
    assert text.count("\ufffd") == 1 and text.replace("\ufffd", "") == (SAMPLES[encoding] + "\n") * 12
    assert encoding in note and "1 bytes or places mean nothing" in note


@pytest.mark.parametrize("data", ["It costs £5.\n".encode("cp1252"), "20 °C and 5 µm\n".encode("cp1252")])
def test_too_little_to_tell_is_read_as_western_and_warned_of(data):
    text, note = decode(data, "x.txt")
    assert text == data.decode("cp1252") and "encoding unknown" in note and "may be wrong" in note


def test_a_chosen_encoding_is_used():
    data = "Привет".encode("cp1251")
    assert decode(data, "x.txt", encoding="windows-1251") == ("Привет", None)
    assert decode(b"a\xff", "x.txt", encoding="ascii") == (
        "a\ufffd", "1 bytes or places mean nothing in this encoding and show as \ufffd",
    )  # fmt: skip
    for wrong in ("klingon", "base64", "idna"):
        with pytest.raises(ConfigError, match=f"encoding '{wrong}': not known; give one such as utf-8"):
            decode(data, "x.txt", encoding=wrong)


def test_a_few_wrong_bytes_do_not_spoil_utf8():
    text, note = decode("“quotes” – all over".encode() * 30 + b" \x92 end", "x.txt")
    assert text.count("“quotes”") == 30 and text.endswith("\ufffd end")
    assert "1 places" in note


def test_bytes_of_no_known_encoding_are_marked():
    data = b"a \x81 b \x98 c\n"  # the first is not in cp1252, the second not in cp1251, no pair is in the others
    text, note = decode(data, "x.txt")
    assert text == data.decode("latin-1")
    assert "encoding unknown" in note


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\x7fELF" + bytes(50), bytes(range(1, 32)) * 20])
def test_binary_is_refused(data):
    with pytest.raises(InputError, match=r"photo\.txt: a binary file"):
        decode(data, "photo.txt")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_text_decoded_in_pieces_is_the_same(size, encoding, monkeypatch):
    more = "and so on " * 10
    data = f"naïve 猫\r\n\r\n  ß\r\rend \x07\r{more}\r".encode(encoding)
    monkeypatch.setattr(encodings, "_PIECE_BYTES", size)
    assert decode(data, "x.txt") == (f"naïve 猫\n\n  ß\n\nend \n{more}\n", None)


@pytest.mark.parametrize("size", [700, 1 << 20])
@pytest.mark.parametrize("blanks", [" ", "\n", "\t\n", "\n \u3000"])
def test_endless_blanks_are_shortened_and_told(size, blanks, monkeypatch):
    monkeypatch.setattr(encodings, "_PIECE_BYTES", size)
    run = blanks * 3_000
    text, note = decode(f"a{run}b\n    c".encode(), "x.txt")
    assert text[0] == "a" and text.endswith("b\n    c") and text[1 : -len("b\n    c")].isspace()
    assert len(text) == MOST_BLANKS + len("ab\n    c") and text[1:].startswith(blanks)
    assert "blanks were shortened" in note
    plenty = f"a{' ' * MOST_BLANKS}b"
    assert decode(plenty.encode(), "x.txt") == (plenty, None)


def test_decoding_is_cancelled(monkeypatch):
    monkeypatch.setattr(encodings, "_PIECE_BYTES", 10)
    asked = iter([False] * 15 + [True])
    with pytest.raises(CancelledError):
        decode(b"some words " * 10, "x.txt", cancelled=lambda: next(asked))
