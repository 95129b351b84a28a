"""Chats as files: what comes out goes in, what is damaged or foreign is refused."""

import json
import random
import zipfile
from pathlib import Path

import pytest

from app.chat import DocumentChat
from app.errors import InputError
from app.records import Box, Part
from app.store import bundle
from tests.chat.opened import SHORT, Open, finish, open_chat, write
from tests.chat.test_memory_files import POLICIES

__all__ = ["open_chat"]


@pytest.fixture
def exported(open_chat: Open, tmp_path: Path) -> tuple[Path, str, str]:
    """(file, id of its chat, answer that the chat gives next)."""
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first = finish(chat.ask("who is it?", documents=[document.id], generation=SHORT)).chat
    finish(chat.ask("and then?", chat=first, generation=SHORT))
    path = tmp_path / "chat.lectern"
    counts = chat.transfers.export_file(first, path)
    assert counts["documents"] == 1 and counts["messages"] == 4
    assert counts["blocks"] > 10 and counts["blocks_missing"] == 0
    expected = finish(chat.ask("next?", chat=chat.saved.fork(first), generation=SHORT)).answer
    return path, first, expected


def texts(chat: DocumentChat, id: str) -> list[str]:
    return [message.content for message in chat.saved.messages(id)]


def test_a_chat_goes_on_in_another_library_without_reading(exported, open_chat: Open) -> None:
    path, first, expected = exported
    before = texts(open_chat(), first)
    chat = open_chat("other")
    id = chat.transfers.import_chat(path)
    assert texts(chat, id) == before and chat.saved.chat(id).title == "who is it?"
    done = finish(chat.ask("next?", chat=id, generation=SHORT))
    assert done.answer == expected and done.stats.tokens_read < 40 and done.stats.note == ""
    (document,) = chat.library.documents()
    assert document.state == "read" and done.evidence[0].document == document.id
    passage = chat.saved.messages(id)[1].evidence[0]
    assert chat.store.part(document.id, passage.part).text[passage.char_start :].startswith(passage.text)
    assert chat.store.verify().damaged == []
    chat.store.collect_garbage()
    chat = open_chat("other")
    assert finish(chat.ask("again?", chat=id, generation=SHORT)).stats.tokens_read < 40


def test_it_can_come_back_beside_the_original(exported, open_chat: Open) -> None:
    path, first, expected = exported
    chat = open_chat()
    id = chat.transfers.import_chat(path)
    chat.saved.delete_chat(first)
    chat.store.collect_garbage()
    done = finish(chat.ask("next?", chat=id, generation=SHORT))
    assert done.answer == expected and done.stats.tokens_read < 40 and len(chat.library.documents()) == 1


@pytest.mark.parametrize(("change", "named"), [({"codec": "int8"}, "codec"), ({"seed": 1}, "weights")])
def test_a_foreign_memory_is_refused_by_name(exported, open_chat: Open, monkeypatch, change, named) -> None:
    if "seed" in change:
        from tests import tiny

        made = tiny.engine()
        monkeypatch.setitem(made.recipe_parts, "weights", "other")
        made.recipe = "f" * 64
        monkeypatch.setattr(tiny, "engine", lambda **_: made)
        change = {}
    chat = open_chat("other", **change)
    with pytest.raises(InputError, match=f"{named}.*--text-only"):
        chat.transfers.import_chat(exported[0])
    assert chat.library.documents() == [] and chat.saved.chats() == []
    id = chat.transfers.import_chat(exported[0], text_only=True)
    done = finish(chat.ask("next?", chat=id, generation=SHORT))
    assert done.stats.tokens_read > 400 and len(chat.saved.messages(id)) == 6


def test_a_damaged_file_is_refused_and_nothing_taken(exported, open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat("other")
    data = exported[0].read_bytes()
    generator = random.Random(3)
    damaged = tmp_path / "damaged.lectern"
    for _ in range(40):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        damaged.write_bytes(flipped)
        try:
            id = chat.transfers.import_chat(damaged)
        except InputError:
            continue
        # A bit that says nothing of the contents, such as a date in the zip's directory.
        assert len(chat.saved.messages(id)) == 4
        chat.saved.delete_chat(id)
        chat.library.delete_document(chat.library.documents()[0].id)
    for cut in (0, 10, len(data) // 2, len(data) - 30):
        damaged.write_bytes(data[:cut])
        with pytest.raises(InputError):
            chat.transfers.import_chat(damaged)
    assert chat.library.documents() == [] and chat.saved.chats() == []


def rewritten(path: Path, target: Path, change) -> Path:
    """The bundle with entries changed and a manifest that says so."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    facts = json.loads(entries.pop(bundle.MANIFEST))
    facts.pop("entries")
    change(entries, facts)
    with bundle.writing(target) as out:
        for name, data in entries.items():
            out.add(name, data)
        out.finish({k: v for k, v in facts.items() if k not in ("format",)})
    return target


def test_what_does_not_belong_together_is_refused(exported, open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat("other")
    target = tmp_path / "changed.lectern"

    def other_text(entries, facts) -> None:
        name = next(n for n in entries if n.startswith("documents/") and n.endswith(".json"))
        value = json.loads(entries[name])
        value["parts"][0]["text"] = "Another text altogether."
        entries[name] = json.dumps(value).encode()

    with pytest.raises(InputError, match="token ids are not those"):
        chat.transfers.import_chat(rewritten(exported[0], target, other_text))

    def version(entries, facts) -> None:
        facts["version"] = 99

    with pytest.raises(InputError, match="version 99"):
        chat.transfers.import_chat(rewritten(exported[0], target, version))
    with pytest.raises(InputError, match="does not say which version"):
        chat.transfers.import_chat(rewritten(exported[0], target, lambda _, facts: facts.update(version=None)))
    for value, told in (("{}", "not a chat that Lectern exported"), ('{"format": "lectern-chat-json"}', "without")):
        target.write_text(value, encoding="utf-8")
        with pytest.raises(InputError, match=told):
            chat.transfers.import_chat(target)
    for broken in ("[]", "{}", '{"info": {"title": 1}, "messages": [{"role": "system"}]}'):
        with pytest.raises(InputError, match="not a chat of this kind"):
            chat.transfers.import_chat(
                rewritten(exported[0], target, lambda e, _, b=broken: e.update({"chat.json": b.encode()}))
            )
    assert chat.library.documents() == [] and chat.saved.chats() == []


def test_blocks_of_other_tokens_are_left_out(exported, open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat("other")

    def swap(entries, facts) -> None:
        names = sorted(name for name in entries if name.endswith(".block") and name.startswith("documents/"))
        entries[names[3]] = entries[names[2]]

    id = chat.transfers.import_chat(rewritten(exported[0], tmp_path / "swapped.lectern", swap))
    done = finish(chat.ask("next?", chat=id, generation=SHORT))
    assert done.stats.tokens_read > 100 and done.answer == exported[2]


def test_other_files_are_refused(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a.txt", "a")
    for name, data in (("empty", b""), ("text", b"hello"), ("list.json", b"{]"), ("json", b'{"format": "x"}')):
        (tmp_path / name).write_bytes(data)
    for name in ("other.zip", "empty", "text", "list.json", "json", "absent"):
        with pytest.raises(InputError, match=name):
            chat.transfers.import_chat(tmp_path / name)


def test_a_chat_as_json_comes_back(exported, open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
    (first,) = [info.id for info in chat.saved.chats() if info.id == exported[1]]
    path = tmp_path / "chat.json"
    path.write_text(chat.transfers.export_json(first), encoding="utf-8")
    id = chat.transfers.import_chat(path)
    taken, kept = chat.saved.messages(id), chat.saved.messages(first)
    assert [(m.role, m.content, m.stats) for m in taken] == [(m.role, m.content, m.stats) for m in kept]
    assert [e.text for e in taken[1].evidence] == [e.text for e in kept[1].evidence]
    done = finish(chat.ask("next?", chat=id, generation=SHORT))
    assert "read again" in done.stats.note and done.stats.tokens_read < 400


def test_blocks_are_packed_without_loss() -> None:
    for parts in ((b"tt", b"ii", [b"1", b"", b"333"], "raw"), (b"", b"", [], "int8")):
        assert bundle.unpack_block(bundle.pack_block(*parts)) == parts
    for data in (b"", b"\xff" * 40, bundle.pack_block(b"t", b"i", [b"k"], "raw")[:-1], b"\0\0\0\0"):
        with pytest.raises(ValueError):
            bundle.unpack_block(data)


def test_parts_keep_every_field() -> None:
    from dataclasses import asdict

    from app.store import checked

    part = Part(3, "iv", "text", "Chapter", 2, 7, "notes", ((0, "slide 1"),), (Box(0, 4, 0.1, 0.2, 0.3, 0.4, 0.9),))
    value = json.loads(json.dumps(asdict(part)))
    assert checked.part(value) == part
    for wrong in ({"index": "3"}, {"index": 10**30}, {"text": None}):
        with pytest.raises((TypeError, ValueError)):
            checked.part(value | wrong)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_memories_that_drop_tokens_travel_too(open_chat: Open, tmp_path: Path, name: str) -> None:
    policy = POLICIES[name]
    chat = open_chat(policy=policy)
    document = chat.library.add_document(write(tmp_path))
    first = finish(chat.ask("who is it?", documents=[document.id], generation=SHORT)).chat
    path = tmp_path / "chat.lectern"
    assert chat.transfers.export_file(first, path)["blocks_missing"] == 0
    (kept,) = chat.store.kept()
    assert kept.policy == name and kept.tokens > chat.library.document(document.id).tokens
    expected = finish(chat.ask("next?", chat=chat.saved.fork(first), generation=SHORT))
    chat = open_chat("other", policy=policy)
    done = finish(chat.ask("next?", chat=chat.transfers.import_chat(path), generation=SHORT))
    assert done.answer == expected.answer and done.stats.tokens_read == expected.stats.tokens_read < 40
    early = chat.saved.fork(done.chat, 1)
    assert finish(chat.ask("and?", chat=early, generation=SHORT)).stats.tokens_read < 80
