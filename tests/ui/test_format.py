"""Numbers, lines and chips as the page writes them."""

import re
import time

import pytest

from app.errors import CancelledError, InputError
from app.records import DocumentInfo, MemoryLine, Reading
from app.ui import format
from tests.fake_chat import model_state

TRICK = "<img src=x onerror=alert(1)>\"'"


@pytest.mark.parametrize("moment", ["2026-11-20T12:52:30", "2026-11-20T12:52:30+00:00", "2026-11-20 12:52:30"])
def test_when_is_told_on_the_local_clock(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        assert format.when(moment) == "20 Nov 2026, 14:52"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert format.when("long ago") == "long ago"


@pytest.mark.parametrize(("part", "whole", "percent"), [(0, 10, 0), (9_999, 10_000, 99), (10, 10, 100), (0, 0, 100)])
def test_share_is_full_only_at_the_end(part: int, whole: int, percent: int) -> None:
    assert format.share(part, whole) == percent


@pytest.mark.parametrize(
    ("label", "kind", "text"),
    [
        ("iv", "pdf", "p. iv"),
        ("line 1,204", "text", "line 1,204"),
        ("Chapter 5, line 7", None, "Chapter 5, line 7"),
        ("7", "text", "part 7"),
        ("", "pdf", ""),
        ("src/a.py:3-9", "code", "src/a.py:3-9"),
        ("src/a.py:3-9", None, "src/a.py:3-9"),
        ("12", None, "p. 12"),
    ],
)
def test_place(label: str, kind: str | None, text: str) -> None:
    assert format.place(label, kind) == text


def test_reading_line_tells_place_share_speed_and_time_left() -> None:
    line = format.reading(Reading("d", "Long Book", 4_100, 10_000, 2_000.4, "312", 1_000, 2.95), "pdf")
    text = re.sub(r"<[^>]+>", " ", line)
    for fact in ("Long Book", "41%", "p. 312", "2,000 tokens/s", "3.0 s left", "1,000 tokens were read before"):
        assert fact in text
    assert 'aria-valuenow="41"' in line
    assert "312" not in format.reading(Reading("d", "Long Book", 1, 2, 1.0, "312", 0, 1.0), "text")


@pytest.mark.parametrize(
    "html",
    [
        format.notice(TRICK),
        format.reading(Reading("d", TRICK, 1, 2, 1.0, TRICK, 0, 1.0)),
        format.model(model_state(name=TRICK)),
        format.problem(model_state(state="failed", detail=TRICK)),
        format.memory(MemoryLine(9, 1, 1, 1, 1, TRICK, TRICK, TRICK)),
        format.waiting(TRICK),
    ],
)
def test_foreign_text_is_escaped(html: str) -> None:
    assert "<img" not in html
    assert "&lt;img" in html


def test_errors_become_messages(caplog: pytest.LogCaptureFixture) -> None:
    assert "a.pdf: damaged" in format.failure(InputError("a.pdf: damaged")) and not caplog.records
    assert "lt-calm" in format.failure(CancelledError("stopped"))
    unknown = format.failure(KeyError("secret detail"))
    assert "secret" not in unknown and "the log has the details" in unknown
    assert "secret detail" in caplog.text


def test_model_mark_follows_the_state() -> None:
    assert "loading" in format.model(model_state(state="loading", demonstration=False))
    assert "demonstration model, ready" in format.model(model_state())
    failed = format.model(model_state(state="failed", demonstration=False))
    assert "not loaded" in failed


def test_failed_model_says_why() -> None:
    assert "models/x: no config.json" in format.problem(model_state(state="failed", detail="models/x: no config.json"))
    assert format.problem(model_state()) == ""


def test_demonstration_model_says_so() -> None:
    said = format.demonstration(model_state())
    assert (
        "keys, numbers and facts" in said
        and "words of the text, often the wrong ones" in said
        and "cannot summarise" in said
    )
    assert format.demonstration(model_state(demonstration=False)) == ""


def test_notes_of_the_folder_are_shown_as_text() -> None:
    assert format.notes([]) == ""
    html = format.notes(["kv.db: <damaged>", "a second one"])
    assert html.count("lt-notice lt-calm") == 2 and "&lt;damaged&gt;" in html


def test_memory_line() -> None:
    facts = (21_973, 344, 1_000_000, 40_000_000, 20_000_000, "keep-all", "compact", "reference")
    plain = "<summary>This chat remembers 21,973 tokens, all of them kept.</summary>344 regions · "
    assert plain in format.memory(MemoryLine(*facts, tokens_kept=21_973))
    tiers = {"tokens_device": 3_000, "tokens_host": 5_000, "tokens_disk": 12_744, "tokens_ids": 256, "codec": "int8"}
    dropped = {"tokens_kept": 21_000, "tokens_evicted": 973, "tokens_quantized": 20_000}
    line = format.memory(MemoryLine(*facts, **dropped, **tiers, tokens_reread=128))
    assert "<summary>This chat remembers 21,973 tokens, 21,000 of them kept whole.</summary>344 regions" in line
    for fact in (
        " · 973 evicted, 20,000 quantized · ",
        "· 3,000 on the GPU, 5,000 in memory, 12,744 in SQLite, 256 left out, 128 read again ·",
        "policy keep-all, int8 codec, compact positions, reference",
        "altogether 1.0 MB on the GPU",
        "40 MB in memory",
        "20 MB in SQLite",
    ):
        assert fact in line
    assert format.memory(MemoryLine(0, 0, 0, 0, 0, "keep-all", "compact", "reference")) == ""


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ("3 of 3 pages were read by OCR, mean confidence 99% (page 1, 2, 3)", ""),
        ("3 of 4 pages hold only images (page 1, 2, 3); install OCR", "3 of 4 pages hold only images"),
        ("1 of 4 pages hold only images (page 1); install OCR", ""),
    ],
)
def test_what_is_mostly_missed_is_told_and_a_scan_that_was_read_is_read(note: str, told: str) -> None:
    info = DocumentInfo("id", "Scan", "pdf", 4, 900, "read", "", "2026-11-30", notes=(note,))
    assert format.missed(info) == told
