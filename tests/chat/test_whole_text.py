"""Questions about whole texts: through all parts once, over stops, restarts and kills."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.chat import whole_text
from app.errors import InputError
from app.records import Delta, Done, Working
from tests.chat.opened import SHORT, Open, finish, open_chat  # noqa: F401
from tests.serving import ROOT

QUESTION = 'How often does "Zorro" occur?'


def book(folder: Path, parts: int = 40, each: int = 3) -> Path:
    """A text of several parts, with a name three times in each and once in another case."""
    path = folder / "book.txt"
    chapters = (
        f"CHAPTER {n}\n\n" + "Zorro came by. " * each + f"It rained in {1800 + n}. " * 150 for n in range(1, parts + 1)
    )
    path.write_text("\n\n".join(chapters) + "\n\nAnd ZORRO left.\n", encoding="utf-8")
    return path


@pytest.fixture
def slow(monkeypatch) -> list[int]:
    """Notes are written after each part; gives the parts that were gone through."""
    seen: list[int] = []
    notes_of = whole_text.notes_of

    def noted(task, part):
        seen.append(part.index)
        return notes_of(task, part)

    monkeypatch.setattr(whole_text, "BATCH_S", 0)
    monkeypatch.setattr(whole_text, "notes_of", noted)
    return seen


def test_all_places_are_counted_without_reading(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    document = chat.library.add_document(book(tmp_path))
    *_, delta, done = chat.ask(QUESTION, documents=[document.id])
    assert isinstance(delta, Delta) and delta.text == done.answer
    assert done.answer.startswith("“Zorro” stands 121 times in book")
    assert chat.library.document(document.id).state == "new" and done.stats.tokens_read == 0
    assert done.stats.parts == done.stats.parts_done == chat.library.document(document.id).parts > 3
    for passage in done.evidence:
        assert chat.store.part(document.id, passage.part).text[passage.char_start : passage.char_end] == passage.text
        assert "zorro" in passage.text.lower() and "line" in passage.label
    (asked, said) = chat.saved.messages(done.chat)
    assert (asked.content, said.content, len(said.evidence)) == (QUESTION, done.answer, 40)
    covered = chat.library.coverage(document.id, said.evidence, said.stats)
    assert all(cell.worked == 1 for cell in covered.cells) and covered.read == 0


def test_the_chat_goes_on_after_it(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    document = chat.library.add_document(book(tmp_path, 2, 1))
    first = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    finish(chat.ask(QUESTION, chat=first.chat))
    third = finish(chat.ask("and then?", chat=first.chat, generation=SHORT))
    assert [m.role for m in chat.saved.messages(first.chat)] == ["user", "assistant"] * 3 and third.answer
    assert third.stats.note == "", "no other version was chosen"


def test_what_was_gone_through_is_not_gone_through_again(open_chat: Open, tmp_path, slow: list[int]) -> None:  # noqa: F811
    chat = open_chat()
    document = chat.library.add_document(book(tmp_path))
    events = chat.ask(QUESTION, documents=[document.id])
    working = [next(events) for _ in range(3)]
    assert all(isinstance(event, Working) for event in working) and "Zorro" in working[-1].text
    chat.jobs.stop()
    *_, done = events
    assert isinstance(done, Done) and done.stats.stopped and "goes on from there" in done.stats.note
    assert 0 < done.stats.parts_done < done.stats.parts
    chat = open_chat()  # a restart
    again = finish(chat.ask(QUESTION, documents=[document.id]))
    assert again.stats.parts_reused == done.stats.parts_done and "121 times" in again.answer
    assert len(slow) == len(set(slow)) == again.stats.parts
    other = finish(chat.ask("Show all mentions of Zorro", documents=[document.id]))  # of the same notes
    assert other.stats.parts_reused == other.stats.parts and len(slow) == other.stats.parts


KILLED = """
import os, signal, sys
from app.chat import whole_text
from tests.chat.opened import *
from tests import tiny
from app.chat import DocumentChat
from app.settings import Settings
from pathlib import Path
whole_text.BATCH_S = 0
chat = DocumentChat.open(Settings(home=Path(sys.argv[1])), engine=tiny.engine())
document = chat.library.add_document(Path(sys.argv[2]))
events = chat.ask(sys.argv[3], documents=[document.id])
for _ in range(4):
    next(events)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_costs_nothing_that_was_told(open_chat: Open, tmp_path, slow: list[int]) -> None:  # noqa: F811
    file = book(tmp_path)
    command = [sys.executable, "-P", "-c", KILLED, str(tmp_path / "home"), str(file), QUESTION]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    chat = open_chat()
    document = chat.library.add_document(file)
    done = finish(chat.ask(QUESTION, documents=[document.id]))
    assert done.stats.parts_reused == 4 and len(slow) == done.stats.parts - 4 and "121 times" in done.answer


def test_what_cannot_be_gone_through_is_refused_when_it_is_chosen(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    document = chat.library.add_document(book(tmp_path, 1))
    with pytest.raises(InputError, match="how often or where something stands"):
        finish(chat.ask("why?", documents=[document.id], through=True))
    assert chat.saved.chats() == []
    muted = finish(chat.ask(QUESTION, documents=[document.id], mute=["book"]))
    assert muted.answer.startswith("“Zorro” stands 0 times") and muted.stats.parts == 0
    asked = finish(chat.ask(QUESTION, documents=[document.id], through=False, generation=SHORT))
    assert not asked.stats.whole and asked.stats.new_tokens


def test_two_versions_are_compared(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    old = chat.library.add_document(book(tmp_path, 6))
    new = tmp_path / "newer.txt"
    new.write_text(
        (tmp_path / "book.txt").read_text(encoding="utf-8").replace("And ZORRO left.", "And ZORRO stayed."),
        encoding="utf-8",
    )
    done = finish(
        chat.ask("What changed between the two versions?", documents=[old.id, chat.library.add_document(new).id])
    )
    assert done.answer.startswith("book and newer differ in 1 place, in 1 of")
    assert [e.text for e in done.evidence] == ["And ZORRO left.", "And ZORRO stayed."]
