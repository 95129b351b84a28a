import argparse
import json
import lzma
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import cli
from app.cli import flags
from app.cli.output import Output
from app.errors import BusyError
from app.ingest.stream import Step
from app.settings import Settings
from app.setup.commands import COMMANDS
from app.store.space import Kept
from app.train.pretrain import corpus
from tests.fake_chat import PASSWORD, FakeDocumentChat, model_state

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ("setup", "test")  # launch.py answers these itself


class FakeChat(FakeDocumentChat):
    """Adds what only the CLI asks of the store, and notes how it was left."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.ended: list[str] = []
        self.store.stats = lambda: {"documents": 2, "kv_bytes": 3 << 20}
        self.store.kept = lambda: [Kept("keep-all", "raw", 1000, 1_500_000)]
        self.store.compact = lambda: (5_000_000, 3_000_000)
        self.store.verify = self._verify

    def _verify(self, progress: Callable[[int, int], None], *, repair: bool) -> SimpleNamespace:
        assert repair
        progress(5, 5)
        return SimpleNamespace(checked=5, damaged=["k1"])

    def stop(self) -> None:
        super().stop()
        self.ended.append("stop")

    def close(self) -> None:
        self.ended.append("close")


class Line:
    """Runs commands on one fake app."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.chat = FakeChat(home)
        self.loaded: list[bool] = []
        self.settings: Settings | None = None
        self._home = home
        self._capsys = capsys

    def open(self, settings: Settings, *, load: bool = True) -> FakeChat:
        self.settings = settings
        self.loaded.append(load)
        return self.chat

    def run(self, *words: object) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = cli.main(["--home", str(self._home), *map(str, words)], open_chat=self.open)
        return code, *self._capsys.readouterr()

    def json(self, *words: object) -> dict:
        code, out, err = self.run(*words, "--json")
        assert code == 0, err
        (last,) = out.splitlines()
        return json.loads(last)


@pytest.fixture
def line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(tmp_path / "home", capsys)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("The harbour lay quiet. The captain counted seven ships.\n" * 20, encoding="utf-8")
    return path


def test_users_are_added_listed_and_removed(line: Line) -> None:
    added = line.json("users", "add", "ann", "--documents", "3")
    assert added["key"].startswith("lectern-ann-")
    (listed,) = line.json("users", "list")["users"]
    assert (listed["name"], listed["documents"], listed["answers"]) == ("ann", 3, 2) and added["key"] not in str(listed)
    assert line.json("users", "remove", "ann")["deleted"] is True and line.json("users")["users"] == []


def test_read_counts_tokens_and_reads_once(line: Line, book: Path) -> None:
    first = line.json("read", book)
    assert set(first) == {"document", "tokens", "tokens_read", "tokens_reused", "disk_bytes", "seconds", "peak_bytes"}
    assert first["disk_bytes"] == 180 * 2048
    assert first["tokens"] == first["tokens_read"] == 180 and first["tokens_reused"] == 0
    assert first["peak_bytes"] > 1 << 20
    second = line.json("read", book)
    assert second["document"] == first["document"]
    assert (second["tokens_read"], second["tokens_reused"]) == (0, 180)
    assert line.chat.ended == ["close"] * 2


def test_read_several_gives_a_list_and_sums(line: Line, book: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("A second book of nine words stands here too.", encoding="utf-8")
    values = line.json("read", book, other)
    assert len(values["document"]) == 2 and values["tokens"] == values["tokens_read"] == 189


def test_read_passes_the_password(line: Line, tmp_path: Path) -> None:
    locked = tmp_path / "locked.txt"
    locked.write_text("secret words", encoding="utf-8")
    code, out, err = line.run("read", locked, "--json")
    assert code == 1 and json.loads(out)["error"] in err and "password" in err
    assert line.chat.ended == ["stop", "close"]
    assert line.json("read", locked, "--password", PASSWORD)["tokens"] == 2


def test_a_file_that_cannot_be_read_does_not_keep_the_others(line: Line, book: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.txt"
    locked.write_text("secret words", encoding="utf-8")
    code, out, err = line.run("read", locked, book, "--json")
    values = json.loads(out.splitlines()[-1])
    assert code == 1 and values["tokens"] == values["tokens_read"] == 180
    assert list(values["failed"]) == [str(locked)] and values["error"] in err
    assert line.json("documents")["documents"][0]["id"] == values["document"]
    assert "1 of 2 could not be read" in line.run("read", book, locked)[1]


def test_ask_answers_with_evidence(line: Line, book: Path) -> None:
    document = line.json("read", book)["document"]
    values = line.json("ask", "-d", document, "--max-new-tokens", 6, "--seed", 5, "How many ships?")
    assert set(values) == {
        "answer",
        "ended",
        "refused",
        "chat",
        "evidence",
        "tokens_read",
        "tokens_reused",
        "new_tokens",
        "seconds_to_first_token",
        "tokens_per_s",
        "peak_bytes",
        "policy",
        "tokens",
        "focus",
        "mute",
        "without",
        "second_look",
        "citations",
        "tokens_kept",
        "tokens_compressed",
        "tokens_evicted",
        "tokens_quantized",
        "tokens_device",
        "tokens_host",
        "tokens_disk",
        "tokens_ids",
        "tokens_reread",
        "codec",
        "knows",
        "coverage",
        "parts",
        "parts_done",
        "parts_reused",
    }
    (covered,) = values["coverage"]
    assert covered["read"] == 1 and any(cell["passages"] for cell in covered["cells"])
    assert values["knows"]["on_documents"] == 0.31 and values["knows"]["source"] == "text"
    assert values["answer"].startswith("You asked: How many ships?")
    assert values["tokens_reused"] == 180 and values["new_tokens"] == 6
    assert (values["ended"], values["refused"]) == ("length", False)
    passage = {"id", "document", "label", "part", "text", "weight", "found_by", "ocr_confidence"}
    assert set(values["evidence"][0]) == passage and values["evidence"][0]["ocr_confidence"] is None
    assert values["evidence"][0]["document"] == document
    asked = line.chat.asked[-1]
    assert (asked["generation"].max_new_tokens, asked["generation"].seed) == (6, 5)
    again = line.json("ask", "--chat", values["chat"], "And then?")
    assert again["chat"] == values["chat"]


def test_ask_goes_through_the_whole_text(line: Line, book: Path) -> None:
    document = line.json("read", book)["document"]
    values = line.json("ask", "--document", document, 'How often does "seven ships" occur?')
    assert values["answer"].startswith("“seven ships” stands 20 times") and len(values["evidence"]) == 20
    assert values["parts"] == values["parts_done"] == 1
    code, _, err = line.run("ask", "--document", document, "--through", "Why?")
    assert code == 1 and "going through all of the text" in err


def test_ask_chooses_the_policy_of_a_new_chat_only(line: Line) -> None:
    code, _, err = line.run("ask", "Where?")
    assert code == 0 and "policy keep-all" in err and "new chats" not in err
    code, _, err = line.run("ask", "--policy", "streaming", "--chat", line.chat.chats()[0].id, "And?")
    assert code == 0 and "answered under policy keep-all; --policy streaming is for new chats" in err


def test_ask_streams_to_stdout_and_tells_the_rest_on_stderr(line: Line, book: Path) -> None:
    document = line.json("read", book)["document"]
    code, out, err = line.run("ask", "-d", document, "How many ships?")
    assert code == 0
    assert out.startswith("You asked: How many ships?") and out.endswith("\n") and "tokens" not in out
    assert "180 reused" in err and "chat c1" in err and "[e2-1] book, Chapter I, lines 1-4 (" in err
    assert "Looked at (share of the attention on the documents):" in err


def test_ask_tells_how_an_answer_ended_and_that_it_refuses(line: Line, book: Path) -> None:
    document = line.json("read", book)["document"]
    assert line.json("ask", "How many ships?")["ended"] == "stop"
    err = line.run("ask", "--max-new-tokens", 2, "How many ships?")[2]
    assert "Cut off at the longest answer, 2 tokens; --max-new-tokens allows a longer one\n" in err
    values = line.json("ask", "Why again and again?")
    assert values["ended"] == "repetition"
    assert "Stopped because the answer repeated itself\n" in line.run("ask", "Why again and again?")[2]
    assert line.json("ask", "-d", document, "What is unsaid?")["refused"] is True
    err = line.run("ask", "-d", document, "What is unsaid?")[2]
    assert "Looked at, without finding an answer (share of" in err and "may say so although" in err
    assert "repeated itself" in line.run("chats", "show", values["chat"])[1]


def test_ask_tells_where_each_token_looked(line: Line, book: Path) -> None:
    values = line.json("ask", "-d", line.json("read", book)["document"], "How many ships?")
    assert values["tokens"][0]["text"] == "You"
    (looked,) = values["tokens"][0]["looked"]
    assert looked == {"document": values["evidence"][0]["document"], "memory": 0, "region": 1, "share": 0.5,
                      "evidence": values["evidence"][0]["id"]}  # fmt: skip
    assert values["tokens_kept"] == 180 and values["tokens_evicted"] == 0


def test_focus_and_mute_reach_the_chat_and_are_told(line: Line, book: Path) -> None:
    key = line.json("read", book)["document"]
    words = ["ask", "-d", key, "--focus", f"{key}#Chapter I", "--mute", f"{key}#2", "--mute", key, "How?"]
    values = line.json(*words)
    assert (values["focus"], values["mute"], values["without"]) == (["book#Chapter I"], ["book#2", "book"], None)
    assert line.chat.asked[-1]["focus"] == (f"{key}#Chapter I",) and line.chat.asked[-1]["without"] is None
    line.json("ask", "-d", key, "--everything", "How?")
    assert line.chat.asked[-1]["focus"] == ("*",)
    _, _, err = line.run(*words)
    assert "looked only in book#Chapter I, did not look in book#2; book" in err and "tokens kept" in err


def test_evidence_is_tested_by_removal(line: Line, book: Path) -> None:
    line.json("ask", "-d", line.json("read", book)["document"], "How many ships?")
    values = line.json("evidence", "e2-1")
    assert (values["before"], values["after"], values["fall"], values["control"]) == (-0.75, -4.0, 3.25, 0.125)
    assert values["tokens"][0] == {"text": "The ", "before": -0.25, "after": -2.25} and values["chat"] == "c1"
    code, out, _ = line.run("evidence", "e2-1")
    assert code == 0 and "is -0.75 nats." in out and "falls by 3.25 nats; without" in out
    code, _, err = line.run("evidence", "e9-9")
    assert code == 1 and "e9-9" in err


def test_documents_are_attached_and_detached(line: Line, book: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("A second book stands here too.", encoding="utf-8")
    one, two = line.json("read", book, other)["document"]
    chat = line.json("ask", "-d", one, "How many ships?")["chat"]
    assert line.json("chats", "attach", chat, two, one)["documents"] == [one, two]
    assert line.json("chats", "detach", chat, "book") == {"chat": chat, "documents": [two]}
    code, out, _ = line.run("chats", "attach", chat, one)
    assert code == 0 and "Documents: other; book. Its earlier turns stay as they were" in out
    code, _, err = line.run("chats", "detach", chat, "atlas")
    assert code == 1 and "atlas: not one of the chat's documents (other; book)" in err
    assert line.json("ask", "--chat", chat, "And?")["tokens_read"] < 10
    assert line.loaded[-2] is False


def test_ask_needs_no_document(line: Line) -> None:
    assert line.json("ask", "Hello?")["evidence"] == []


def test_what_became_of_the_memory_is_told(line: Line, book: Path) -> None:
    line.chat.told = ["kv.db: set aside"]
    line.chat.answer_note = "the chat's turns are read again"
    assert "kv.db: set aside" in line.run("read", book)[2]
    for words in (["ask", "Hello?"], ["ask", "Hello?", "--json"]):
        assert "the chat's turns are read again" in line.run(*words)[2]


def test_ask_with_settings_that_cannot_be(line: Line) -> None:
    code, _, err = line.run("ask", "--temperature", "-1", "x")
    assert code == 2 and "temperature" in err


def test_documents(line: Line, book: Path) -> None:
    assert line.json("documents") == {"documents": []}
    key = line.json("read", book)["document"]
    assert line.json("documents", "list")["documents"][0]["id"] == key
    assert line.json("documents", "show", key)["tokens"] == 180
    code, out, _ = line.run("documents")
    assert code == 0 and re.search(rf"{key}\s+book\s+text", out)
    assert line.json("documents", "delete", key) == {"deleted": key, "freed_bytes": 0}
    code, out, err = line.run("documents", "show", key, "--json")
    assert code == 1 and key in json.loads(out)["error"]
    assert line.run("documents", "delete", key)[0] == 1
    assert line.loaded[-1] is False  # what asks for no state needs no model


def test_documents_are_listed_without_a_model(line: Line, book: Path) -> None:
    key = line.json("read", book)["document"]
    line.chat.state = model_state(state="failed", detail="no such folder")
    code, out, err = line.run("documents")
    assert code == 0 and "book" in out and err == ""
    assert line.json("documents", "show", key)["tokens"] == 180
    assert line.loaded[-2:] == [False, False]


def test_chats(line: Line, tmp_path: Path) -> None:
    chat = line.json("ask", "Where is the harbour?")["chat"]
    assert [c["id"] for c in line.json("chats")["chats"]] == [chat]
    assert line.json("chats", "list", "--search", "volcano") == {"chats": []}
    assert [m["role"] for m in line.json("chats", "show", chat)["messages"]] == ["user", "assistant"]
    assert line.json("chats", "export", chat)["markdown"].startswith("# Where is")
    target = tmp_path / "chat.md"
    assert line.json("chats", "export", chat, "--output", target) == {"path": str(target)}
    assert target.read_text(encoding="utf-8").startswith("# Where is")
    code, _, err = line.run("chats", "export", chat, "--output", tmp_path / "none" / "chat.md")
    assert code == 1 and "cannot be written" in err
    assert line.json("chats", "delete", chat) == {"deleted": chat, "freed_bytes": 0}


def test_chats_are_forked_and_edited(line: Line) -> None:
    chat = line.json("ask", "Where is the harbour?")["chat"]
    line.json("ask", "--chat", chat, "And the ships?")
    forked = line.json("chats", "fork", chat, "--turn", 1)
    assert forked == {"chat": forked["chat"], "parent": chat, "messages": 2}
    assert line.json("chats", "fork", chat)["messages"] == 4
    assert line.json("chats", "fork", chat, "--turn", 0)["messages"] == 0
    values = line.json("chats", "edit", chat, 1, "Where is the tower?", "--max-new-tokens", 9)
    assert values["answer"].startswith("You asked: Where is the tower?") and values["chat"] == chat
    assert [m["content"] for m in line.json("chats", "show", chat)["messages"]][::2] == ["Where is the tower?"]
    code, _, err = line.run("chats", "fork", chat, "--turn", 7)
    assert code == 1 and "turn 7" in err


def test_chats_as_files(line: Line, book: Path, tmp_path: Path) -> None:
    chat = line.json("ask", "-d", line.json("read", book)["document"], "How many ships?")["chat"]
    assert json.loads(line.json("chats", "export", chat, "--format", "json")["text"])["title"] == "How many ships?"
    for name in ("chat.json", "chat.lectern"):
        assert line.json("chats", "export", chat, "--output", tmp_path / name)["path"] == str(tmp_path / name)
        assert line.json("chats", "import", tmp_path / name, "--text-only")["title"] == "How many ships?"
        assert line.loaded[-1] is False
    for words in (["--format", "lectern"], ["--output", tmp_path / "chat.xyz"]):
        code, _, err = line.run("chats", "export", chat, *words)
        assert code == 2 and "choose" in err


def test_memories_are_pinned_and_evicted(line: Line, book: Path) -> None:
    key = line.json("read", book)["document"]
    assert line.json("documents", "pin", key) == {"document": key, "pinned": True}
    assert line.json("documents", "unpin", key) == {"document": key, "pinned": False}
    assert line.json("documents", "evict", key) == {"evicted": key, "freed_bytes": 0}
    assert line.json("documents", "show", key)["state"] == "new"
    found = line.json("documents", "search", "ships", "--limit", 3)["found"]
    assert found[0]["document"] == key and "ships" in found[0]["snippet"]
    assert line.run("documents", "search", "volcano", "-d", key)[1] == "Not found.\n"


def test_store(line: Line) -> None:
    memories = [
        {"policy": "keep-all", "codec": "raw", "tokens": 1000, "size_bytes": 1_500_000, "bytes_per_token": 1500.0}
    ]
    assert line.json("store", "stats") == {"documents": 2, "kv_bytes": 3 << 20, "memories": memories}
    assert "keep-all, raw: 1,000 tokens, 1.5 MB, 1,500 bytes per token" in line.run("store", "stats")[1]
    compacted = {"bytes_before": 5_000_000, "bytes_after": 3_000_000, "freed_bytes": 2_000_000}
    assert line.json("store", "compact") == compacted
    assert "kv_bytes: 3.1 MB" in line.run("store", "stats")[1]
    assert line.json("store", "verify") == {"checked": 5, "damaged": ["k1"]}
    assert "5 blocks checked, 1 damaged" in line.run("store", "verify")[1]


def test_settings_stand_before_or_after_the_command(line: Line) -> None:
    line.run("--threads", 3, "documents", "list", "--policy", "streaming", "--budget", 99)
    assert line.settings is not None
    assert (line.settings.threads, line.settings.policy, line.settings.budget_tokens) == (3, "streaming", 99)
    line.run("documents", "--threads", 4)
    assert line.settings.threads == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["serve"]),
        (["--port", "80"], ["serve", "--port", "80"]),
        (["--home", "x", "--json"], ["serve", "--home", "x", "--json"]),
        (["--home", "x", "read", "y"], ["--home", "x", "read", "y"]),
        (["--home=x", "--no-browser"], ["serve", "--home=x", "--no-browser"]),
        (["--help"], ["--help"]),
        (["ask", "serve"], ["ask", "serve"]),
    ],
)
def test_serve_is_the_default(words: list[str], expected: list[str]) -> None:
    assert flags.with_default(words) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["read"],
        ["nonsense"],
        ["ask", "x", "--bogus"],
        ["documents", "--policy", "magic"],
        ["eval"],
        ["eval", "passkey", "--lengths", "12,x"],
        ["eval", "passkey", "--lengths", "12", "--times-trained", "2"],
        ["eval", "passkey", "--filler-file", "x.txt"],
        ["eval", "needles", "--task", "many"],
        ["eval", "qa", "--file", "x", "--tokens", "9"],
        ["read", "x", "--pass", "p"],
    ],
)
def test_bad_usage(line: Line, words: list[str]) -> None:
    code, out, err = line.run(*words, "--json")
    assert code == 2 and json.loads(out)["error"] == err.strip()


def test_busy_says_who_holds_the_folder(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    def busy(settings: Settings, *, load: bool = True) -> None:
        raise BusyError("process 7 uses the folder, open at http://127.0.0.1:7861/", "http://127.0.0.1:7861/")

    assert cli.main(["documents", "--json"], open_chat=busy) == 1
    assert "http://127.0.0.1:7861/" in json.loads(capsys.readouterr().out)["error"]


def test_second_serve_names_the_running_page(capsys: pytest.CaptureFixture[str]) -> None:
    def busy(url: str | None) -> Callable[..., None]:
        def open_chat(settings: Settings, *, load: bool = True) -> None:
            raise BusyError("process 7 uses the folder", url)

        return open_chat

    assert cli.main(["serve", "--no-browser"], open_chat=busy("http://127.0.0.1:7861/")) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("http://127.0.0.1:7861/")
    assert cli.main(["serve", "--no-browser"], open_chat=busy(None)) == 1
    assert "process 7" in capsys.readouterr().err


def test_serve_closes_the_app(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    import app.server
    import app.ui.build

    served = []
    monkeypatch.setattr(app.ui.build, "build", lambda chat: "page")
    monkeypatch.setattr(app.server, "serve", lambda chat, page, **options: served.append((page, options)))
    assert line.run("--port", 7999, "--no-browser")[0] == 0
    ((page, options),) = served
    assert (page, options["port"], options["browser"]) == ("page", 7999, False)
    assert line.chat.ended == ["close"]


@pytest.fixture
def tiny_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    import app.runtime.load
    from tests import tiny

    def load(settings: Settings):
        engine = tiny.engine(policy=settings.policy)
        engine.segment_tokens = engine.most_segment_tokens = 1024  # a long text in few steps
        return engine

    monkeypatch.setattr(app.runtime.load, "load_engine", load)


RUN = {"model", "policy", "budget_tokens", "trained_tokens", "seconds", "peak_bytes"}


def test_eval_passkey(line: Line, tiny_engine: None) -> None:
    values = line.json("eval", "passkey", "--times-trained", "8", "--trials", 4, "--per-reading", 2, "--seed", 1)
    assert RUN <= set(values) and line.loaded == []
    assert (values["accuracy"], values["lower_bound_95"], values["trials"]) == (0, 0, 4)
    (row,) = values["lengths"]
    assert row["tokens"] == 512 and [depth["trials"] for depth in row["depths"]] == [1] * 4
    assert 2 * 400 < values["tokens_read"] <= 2 * 512


def test_eval_needles(line: Line, tiny_engine: None) -> None:
    tasks = ("multi-value", "multi-query")
    command = ("eval", "needles", "--task", ",".join(tasks), "--lengths", "1100", "--filler", "repeat")
    values = line.json(*command, "--per-reading", 2, "--trials", 2, "--seed", 1)
    assert RUN <= set(values) and values["tasks"] == list(tasks) and values["score"] == 0
    assert [(row["task"], row["tokens"], row["trials"]) for row in values["rows"]] == [(t, 1100, 2) for t in tasks]
    assert sum(row["second"]["trials"] for row in values["rows"] if row["second"]) == 2
    assert values["effective_tokens"] == dict.fromkeys(tasks)
    out = line.run(*command, "--per-reading", 1, "--trials", 1)[1]
    assert "Effective length, tokens (85% of the score at 1,100): multi-value none, multi-query none" in out


def test_eval_perplexity(line: Line, tiny_engine: None, book: Path) -> None:
    values = line.json("eval", "perplexity", "--file", book, "--lengths", "64,256", "--windows", 2, "--policy", "full")
    assert RUN <= set(values) and values["policy"] == "full"
    assert [row["tokens"] for row in values["lengths"]] == [64, 256]
    assert values["counted_per_window"] == 32 and values["lengths"][0]["counted_tokens"] == 64
    code, _, err = line.run("eval", "perplexity", "--file", book, "--lengths", "9999999")
    assert code == 1 and "fewer than" in err


def test_eval_qa(line: Line, tiny_engine: None, book: Path, tmp_path: Path) -> None:
    entry = {"id": "d", "text": "The tower is red.", "qas": [{"id": "q", "question": "Colour?", "answers": ["red"]}]}
    file, answers = tmp_path / "qa.jsonl", tmp_path / "answers.jsonl"
    file.write_text(json.dumps(entry), encoding="utf-8")
    values = line.json("eval", "qa", "--file", file, "--limit", 5, "--save", answers)
    assert RUN <= set(values) and values["n"] == 1 and values["f1"] == 0
    assert json.loads(answers.read_text(encoding="utf-8"))["id"] == "q"
    values = line.json("eval", "qa", "--file", file, "--haystack", book, "--tokens", 600)
    assert 540 < values["tokens"] <= 600 and values["per_reading"] == 10 and values["second"] is None
    entry["qas"].append({"id": "u", "question": "When?", "answers": [], "answerable": False})
    file.write_text(json.dumps(entry), encoding="utf-8")
    values = line.json("eval", "qa", "--file", file, "--haystack", book, "--tokens", 600, "--second", 1)
    assert values["n"] == 2 and values["second"]["n"] == 1 and values["evidence"]["right"] == 0
    out = line.run("eval", "qa", "--file", file, "--second", 2)[1]
    assert "over 1 answerable of 2 questions" in out and "Second questions: " in out


def test_eval_questions(line: Line, tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    for name in (*corpus.FREE_QA, *corpus.VALIDATION_QA):
        asked = {"question": f"Who? {name}", "answers": ["The red one", "red"]}
        lines = [json.dumps({"title": str(n), "text": f"{name} {n}", "qas": [asked]}) for n in range(100)]
        (tmp_path / "qa" / f"{name}.jsonl.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
    out = tmp_path / "questions.jsonl"
    command = ("eval", "questions", "--data", tmp_path, "--out", out, "--count", 12, "--longest", 60)
    values = line.json(*command, "--unanswerable", 0.25, "--seed", 3)
    assert values["n"] == 12 and values["unanswerable"] == 3 and len(values["sets"]) >= 8
    made = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    held = [entry for entry in made if entry["title"] not in corpus.VALIDATION_QA]
    assert all(corpus.is_held_back({"title": entry["text"].split()[1], "text": ""}) for entry in held)
    assert {tuple(e["qas"][0]["answers"]) for e in made} == {("red", "The red one"), ()}
    code, _, err = line.run(*command)
    assert code == 2 and "is there already" in err
    assert "12 questions, 2 without an answer" in line.run(*command, "--force")[1]
    assert line.run(*command, "--force", "--count", 5000)[0] == 1


def test_ctrl_c_stops_and_closes(line: Line, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(document: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(line.chat, "read", interrupted)
    code, out, _ = line.run("read", book, "--json")
    assert code == 130 and json.loads(out)["error"].startswith("Stopped")
    assert line.chat.ended == ["stop", "close"]


def test_ctrl_c_while_a_file_is_opened_stops_it(line: Line, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def interrupted(path: Path, **options: object) -> Iterator[Step]:
        try:
            yield Step("opening it", 1, 2)
            raise KeyboardInterrupt
        finally:
            ended.append(path)

    monkeypatch.setattr(line.chat, "adding", interrupted)
    code, _, err = line.run("read", book)
    assert code == 130 and "opening it, 50%" in err and "Stopped" in err
    assert ended == [book] and line.chat.ended == ["stop", "close"]


def test_an_unexpected_error_goes_to_the_log(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("wires crossed")

    monkeypatch.setattr(line.chat, "documents", broken)
    code, out, err = line.run("documents", "--json")
    log = tmp_path / "home" / "lectern.log"
    assert code == 1 and str(log) in json.loads(out)["error"]
    assert "Traceback" not in out + err and "wires crossed" in err
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(settings: Settings, *, load: bool = True) -> None:
        raise RuntimeError("wires crossed")

    (tmp_path / "file").write_text("", encoding="utf-8")
    assert cli.main(["documents", "--home", str(tmp_path / "file" / "home")], open_chat=broken) == 1
    err = capsys.readouterr().err
    assert "wires crossed" in err and "the log cannot be written" in err


def test_train_hands_over(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import app.train.cli

    handed = []
    monkeypatch.setattr(app.train.cli, "train", lambda words: handed.append(words) or tmp_path / "small")
    recipe = tmp_path / "recipe.toml"
    values = line.json("train", recipe, "--data", tmp_path, "--run", tmp_path / "run", "--threads", 2)
    assert values == {"model": str(tmp_path / "small")}
    line.json("train", recipe, "--out", tmp_path / "out", "--device", "cpu")
    data, run, out = (str(tmp_path / name) for name in ("", "run", "out"))
    assert handed == [
        [str(recipe), "--device", "auto", "--data", data, "--run", run, "--threads", "2"],
        [str(recipe), "--device", "cpu", "--out", out],
    ]


def test_samples_are_made_and_told(line: Line, shipped_model: Path, tmp_path: Path) -> None:
    book, out = ROOT / "tests" / "data" / "book.txt", tmp_path / "made.jsonl"
    words = ["samples", book, "--out", out, "--count", 4, "--lengths", "512,600", "--validation", 0.25, "--turns", 2]
    values = line.json(*words, "--kinds", "cloze,continue,docstring", "--depths", "0.2,0.8")
    aside = tmp_path / "made.validation.jsonl"
    assert values["samples"] == 3 and values["validation"] == 1 and values["validation_file"] == str(aside)
    assert len(out.read_text("utf-8").splitlines()) == 3 and len(aside.read_text("utf-8").splitlines()) == 1
    assert set(values["kinds"]) == {"cloze", "continue"} and sum(values["depths"]) == values["questions"] == 8
    code, _, err = line.run(*words)
    assert code == 2 and "made.jsonl: is there already" in err
    code, told, _ = line.run(*words, "--kinds", "cloze,docstring", "--force")
    assert code == 0 and "3 samples are in" in told and "gave none of: docstring" in told
    assert line.run("samples", book, "--out", tmp_path)[0] == 2
    assert line.run("samples", book, "--out", out, "--depths", "deep")[0] == 2


def test_inspect_tells_what_a_folder_is(line: Line, shipped_model: Path, tmp_path: Path) -> None:
    values = line.json("inspect", shipped_model)
    assert values["kind"] == "checkpoint" and values["usable"] and values["facts"]["layers"] == "4"
    code, out, _ = line.run("inspect", tmp_path)
    assert code == 1 and "unknown" in out and "holds no config.json" in out
    code, out, _ = line.run("inspect", tmp_path / "none", "--json")
    assert code == 1 and json.loads(out)["reasons"]


def test_merge_hands_over_and_tells(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.models import merge
    from app.models.merge_check import Check

    def make(adapter: Path, out: Path, **options: object) -> merge.Merged:
        assert options.pop("on_step")("looking") is None
        assert options == {
            "base": tmp_path, "dtype": "float32", "trained_tokens": 9, "force": True, "threads": 3,
        }  # fmt: skip
        return merge.Merged(out, tmp_path, 5, 10, "float32", 262, True, Check(32, 0.0, 0.001, 0.999), ("[PAD] added",))

    monkeypatch.setattr(merge, "merge", make)
    words = ["merge", "a", "--out", "b", "--base", tmp_path, "--dtype", "float32", "--trained-tokens", 9]
    words += ["--force", "--threads", 3]
    values = line.json(*words)
    assert (values["model"], values["vocabulary"], values["check"]["same_tokens"]) == ("b", 262, 0.999)
    code, out, err = line.run(*words)
    assert code == 0 and "[PAD] added" in err and "99.9% of the likeliest tokens are the same" in out


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from app.cli import main\n"
        "assert main(['eval', 'qa', '--help']) == 0\n"
        "print([m for m in ('torch', 'gradio', 'transformers', 'fastapi', 'sqlite_utils') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--haystack" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_a_closed_pipe_is_no_crash(book: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.cli", "text", str(book), "--home", str(tmp_path / "home")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait() == 1
    assert all(line.endswith("opening it") for line in process.stderr.read().splitlines())  # on a busy machine


def _parsers(parser: argparse.ArgumentParser, name: str = "") -> list[tuple[str, argparse.ArgumentParser]]:
    """Every command with its full name."""
    found = [(name, parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                found += _parsers(child, f"{name} {word}".strip())
    return found


def test_docs_name_every_command_and_flag() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, parser in _parsers(flags.parser()):
        assert name in text
        for action in parser._actions:
            for flag in action.option_strings:
                assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text), f"{name} {flag}"


def test_the_overview_lists_the_commands_there_are() -> None:
    (root,) = [a for a in flags.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert sorted([*root.choices, *LAUNCHER]) == sorted(COMMANDS)


class Terminal:
    """A stream that calls itself a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_progress_draws_over_itself_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    out = Output(as_json=False, out=err, err=err)
    now = iter([0.0, 0.05, 1.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    out.progress("reading 10%")
    out.progress("dropped: too soon")
    out.progress("done")
    assert err.text == "\rreading 10%\rdone       "
    out.say("over")
    assert err.text.endswith("\r    \rover\n")


def test_progress_elsewhere_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Output(as_json=True)
    now = iter([0.0, 9.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    for step in ("10%", "20%", "30%"):
        out.progress(step)
    assert capsys.readouterr() == ("", "10%\n30%\n")


@pytest.mark.parametrize(
    "words",
    [
        ("ask", "x", "--max-new-tokens", "9" * 30),
        ("ask", "x", "--max-new-tokens", "9" * 5_000),
        ("ask", "x", "--threads", str(2**31)),
        ("documents", "search", "x", "--limit", "1e3"),
        ("eval", "passkey", "--trials", str(2**31 - 1)),
        ("eval", "passkey", "--lengths", "9" * 30),
        ("eval", "needles", "--lengths", "²"),
        ("eval", "needles", "--trials", "100001"),
        ("serve", "--port", "9" * 30),
    ],
)
def test_numbers_of_a_size_that_nothing_has_are_refused(line: Line, words: tuple[str, ...]) -> None:
    code, _, err = line.run(*words)
    assert code == 2 and re.search("too large|not a whole number|not a list of|between 1 and", err) and len(err) < 400
    assert line.loaded == []
