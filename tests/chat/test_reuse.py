"""Must show: what is read and what is reused when books, repositories, chats, models and recipes change."""

from pathlib import Path

from app.chat import DocumentChat
from app.settings import Settings
from benchmarks.reuse import BOOK, Cases, Row
from tests import tiny

VARIANTS = {"": {}, "recipe": {"policy": "streaming"}, "model": {"seed": 1}}


def test_nothing_is_read_twice(tmp_path: Path) -> None:
    opened: list[DocumentChat] = []

    def open_chat(variant: str) -> DocumentChat:
        for chat in opened:
            chat.close()
        opened.append(DocumentChat.open(Settings(home=tmp_path / "home"), engine=tiny.engine(**VARIANTS[variant])))
        return opened[-1]

    text = BOOK.read_text(encoding="utf-8")[:4000]
    rows = Cases(open_chat, tmp_path, text).run()
    opened[-1].close()
    assert [row for row in rows if not row.right] == []
    found = {row.case: row for row in rows}
    assert len(found) == len(rows) == 23
    for case in (
        "the same file under another name",
        "the same text in another file",
        "the same repository elsewhere",
        "a folder deleted",
        "the book with the first model again",
    ):
        assert found[case].read == 0 and found[case].reused > 2000
    for case in ("a second chat about the same book", "the chat after a restart", "the first question edited"):
        assert 0 < found[case].read < 60 and found[case].reused > 3500
    for case in ("the book with another recipe", "the book with another model", "a book, the first time"):
        assert found[case].reused == 0


def test_a_case_that_reads_too_much_is_seen() -> None:
    assert Row("x", 5, 0, 5).right and not Row("x", 6, 0, 5).right
