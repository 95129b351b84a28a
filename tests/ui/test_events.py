"""Events of the page: what they may bring, and how those that fail are told."""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import server
from app.store import database
from app.ui.build import build
from app.ui.format import CALM
from tests.chat.opened import Open, open_chat, write  # noqa: F401  a fixture
from tests.fake_chat import FakeDocumentChat, fake_passkey_run

HERE = "http://127.0.0.1:7860"


class Page:
    """A page whose events are called by what is clicked."""

    def __init__(self, chat: Any, client: TestClient, blocks: Any) -> None:
        self.chat, self.client, self.blocks = chat, client, blocks

    def event(self, elem_id: str, kind: str = "click") -> int:
        """Number of the event of a component."""
        block = next(key for key, block in self.blocks.blocks.items() if getattr(block, "elem_id", None) == elem_id)
        return next(key for key, fn in self.blocks.fns.items() if fn.fn and (block, kind) in fn.targets)

    def call(self, elem_id: str, *data: Any, kind: str = "click", id: str = "", text: str = "") -> Any:
        """The answer to an event that answers at once."""
        number = self.event(elem_id, kind)
        call = {"session_hash": "s1", "fn_index": number, "data": list(data), "event_data": {"id": id, "text": text}}
        return self.client.post("/gradio_api/run/predict", json=call)


@pytest.fixture(scope="module")
def served() -> Iterator[Callable[[Any], Page]]:
    """Serves a chat."""
    clients: list[TestClient] = []

    def serve(chat: Any) -> Page:
        blocks = build(chat, run_passkey=fake_passkey_run)
        clients.append(TestClient(server.create_app(chat, blocks, "k3y"), base_url=HERE, raise_server_exceptions=False))
        clients[-1].__enter__()
        clients[-1].cookies.set("lectern-7860", "k3y", domain="127.0.0.1")
        return Page(chat, clients[-1], blocks)

    yield serve
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def page(served: Callable[[Any], Page], tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    chat = FakeDocumentChat(folder / "home")
    chat.library.add_document(write(folder))
    return served(chat)


def told(answer: Any) -> str:
    """What the page shows of an event that failed."""
    assert answer.status_code == 500, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize("target", ["gone@all", "gone@0", "", "@", "gone"])
def test_a_stale_id_is_told_in_words(page: Page, target: str, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    caplog.set_level(logging.WARNING, "app")
    assert "is not here any more" in told(page.call("do-chat-fork", id=target))
    assert "Traceback" not in "".join(capfd.readouterr()) and not caplog.records


def test_what_nobody_foresaw_is_told_calmly_and_logged_once(
    page: Page, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("<b>cause</b>")

    monkeypatch.setattr(page.chat, "fork", fail)
    assert told(page.call("do-chat-fork", id="c1@all")) == CALM
    (record,) = [record for record in caplog.records if record.name.startswith("app")]
    assert record.exc_info and "cause" in str(record.exc_info[1])
    assert "Traceback" not in "".join(capfd.readouterr()), "once, in the log of the data folder"


@pytest.mark.parametrize("id", ["nobody", "", "e1-1", "e1-1@x", "@", "e1-1@99999999999999"])
def test_a_passage_to_turn_to_that_is_none_is_told(page: Page, id: str, capfd: pytest.CaptureFixture[str]) -> None:
    answer = page.call("do-turn", id=id)
    assert answer.status_code in (200, 500) and "no part" in answer.text or "not here" in answer.text, answer.text
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "values",
    [
        ("c1", ["nobody"], "keep-all"),
        ("c1", [], "none of them"),
        ("c1", [], ["keep-all"]),
        ("c1", [[]], "keep-all"),
        ("c1", "d1", "keep-all"),
        ("c1", [1e999], "keep-all"),
    ],
)
def test_a_value_that_is_not_offered_is_refused(
    page: Page, values: tuple[Any, ...], capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    number = page.event("policy", "input")
    call = {"session_hash": "s1", "fn_index": number, "data": list(values)}
    problem = page.blocks.check(call)
    assert problem is not None and "\n" not in problem
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_the_page_was_offered_is_taken(page: Page) -> None:
    """Choices that came by an update count, for this page alone."""
    known = page.chat.documents()[0].id
    number = page.event("picker", "input")
    call = {"session_hash": "s1", "fn_index": number, "data": [None, [known], "keep-all"]}
    assert page.blocks.check(call) is not None
    kept = next(key for key, fn in page.blocks.fns.items() if fn.fn and any(kind == "load" for _, kind in fn.targets))
    load = {"session_hash": "s1", "fn_index": kept, "data": [""]}
    assert page.client.post("/gradio_api/run/predict", json=load).status_code == 200
    assert page.blocks.check(call) is None
    assert page.blocks.check(call | {"session_hash": "s2"}) is not None


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1, 99, "1", True])
def test_numbers_lie_in_their_range(page: Page, value: Any) -> None:
    number = next(
        key
        for key, fn in page.blocks.fns.items()
        if fn.fn and [block.get_block_name() for block in fn.inputs] == [*["slider"] * 3, "textbox", "dropdown"]
    )
    call = {"session_hash": "s1", "fn_index": number, "data": [0.5, 1, 64, "", ""]}
    call |= {"event_data": {"id": "", "text": ""}}
    assert page.blocks.check(call) is None
    assert page.blocks.check(call | {"data": [value, 1, 64, "", ""]}) is not None


def test_a_library_that_another_program_holds_is_told(
    open_chat: Open,  # noqa: F811
    served: Callable[[Any], Page],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(database, "WAITING_S", 0.1)
    chat = open_chat()
    page, key = served(chat), chat.saved.new_chat()
    chat.store.save_turn(key, "Who?", "Nobody.", {}, [], None)
    other = sqlite3.connect(chat.settings.folder / "library.db")
    try:
        other.execute("BEGIN EXCLUSIVE")
        assert "held by another program; close it" in told(page.call("do-chat-fork", id=f"{key}@all"))
        for name, data in (("do-chat-rename", [""]), ("do-chat-delete", ["", None])):
            answer = page.call(name, *data, id=key, text="Another title")
            assert answer.status_code == 200 and "held by another program; close it" in answer.text
    finally:
        other.close()
    assert page.call("do-chat-rename", "", id=key, text="Another title").status_code == 200
    assert chat.saved.chat(key).title == "Another title"
    assert "Traceback" not in "".join(capfd.readouterr())
