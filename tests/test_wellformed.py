"""Half characters and control characters, at every edge that text comes in by."""

import json
import sys
from io import StringIO
from pathlib import Path

import pytest

from app import cli
from app.cli import _whole
from app.cli.flags import parser
from app.cli.output import Output
from app.eval import qa
from app.train.tune import instructions
from app.wellformed import NAME_BYTES, file_name, one_line, parse_json, whole, whole_values

HALF = "smile \ud83d"
BYTE = "caf\udce9"  # how Python gives a byte that is not UTF-8


def test_a_half_becomes_one_replacement_character_and_nothing_else_changes() -> None:
    assert whole(HALF) == "smile \ufffd" and whole(BYTE) == "caf\ufffd"
    assert whole("whole \U0001f600 \u00e9") == "whole \U0001f600 \u00e9"
    assert whole_values({BYTE: [HALF, (HALF, 3, None)]}) == {"caf\ufffd": ["smile \ufffd", ["smile \ufffd", 3, None]]}


NO_JSON = ("", "{", "[" * 100_000, "[" * 600 + "]" * 600, b"\xff\xfe\xff", "1" * 5_000, "{'a': 1}")


@pytest.mark.parametrize("data", NO_JSON)
def test_json_that_is_none_or_too_deep_is_a_value_error(data: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(data)


def test_json_is_whole() -> None:
    assert parse_json('{"a\\ud83d": ["\\udce9"]}') == {"a\ufffd": ["\ufffd"]}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("book.txt", "book.txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\books\\a.pdf", "a.pdf"),
        ("", "document"),
        ("..", "document"),
        (" . ", "document"),
        ("a\x00b\n.txt", "a b .txt"),
        ("caf\udce9.txt", "caf\ufffd.txt"),
    ],
)
def test_a_name_from_another_program_is_a_name_of_a_file(given: str, name: str, tmp_path: Path) -> None:
    assert file_name(given) == name
    (tmp_path / file_name(given)).write_text("x", encoding="utf-8")


@pytest.mark.parametrize("long", ["x" * 400 + ".txt", "é" * 250 + ".tar.gz", "y" * 400, "." + "z" * 400])
def test_a_long_name_is_cut_and_keeps_its_ending(long: str) -> None:
    name = file_name(long)
    assert 100 < len(name.encode()) <= NAME_BYTES
    if "." in long[1:]:
        assert name.endswith(long.rpartition(".")[2])


def test_a_title_is_one_line_without_what_moves_the_text_around_it() -> None:
    assert one_line(" a\x00b\r\nc\u202ed\x1b[31m " + HALF) == "a b c d [31m smile \ufffd"
    assert len(one_line("x" * 1000)) == 300


def test_words_of_a_command_are_whole_and_paths_stay() -> None:
    args = _whole(parser().parse_args(["ask", BYTE, "-d", BYTE, "--focus", HALF, "--model", BYTE]))
    assert (args.question, args.document, args.focus, args.model) == (
        "caf\ufffd",
        ["caf\ufffd"],
        ["smile \ufffd"],
        BYTE,
    )
    args = _whole(parser().parse_args(["read", BYTE, "--password", BYTE]))
    assert args.paths == [Path(BYTE)] and args.password == "caf\ufffd"


@pytest.mark.parametrize("as_json", [False, True])
def test_whatever_is_printed_can_be_written(as_json: bool) -> None:
    out, err = StringIO(), StringIO()
    output = Output(as_json=as_json, out=out, err=err)
    output.say(BYTE)
    output.stream(HALF)
    output.progress(HALF)
    output.result({"a": [HALF]}, BYTE)
    output.fail(HALF, 1)
    (out.getvalue() + err.getvalue()).encode()
    if as_json:
        assert [json.loads(line) for line in out.getvalue().splitlines()] == [
            {"a": ["smile \ufffd"]},
            {"error": "smile \ufffd"},
        ]


def test_training_and_evaluation_files_with_half_characters(tmp_path: Path) -> None:
    line = {"conversations": [{"from": "human", "value": "Smile."}, {"from": "gpt", "value": HALF}]}
    for text in (json.dumps(line), json.dumps([line])):
        ((number, value),) = instructions._items(text, "data.jsonl")
        assert number == 1 and value["conversations"][1]["value"] == "smile \ufffd"
    file = tmp_path / "qa.jsonl"
    file.write_text(json.dumps({"text": HALF, "qas": [{"question": HALF, "answers": ["smile"]}]}))
    questions, _ = qa.load(file)
    assert "\ufffd" in str(questions[0]) and "\ud83d" not in str(questions[0])


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are text there")
def test_a_chat_takes_a_question_and_a_title_with_half_characters(tmp_path: Path) -> None:
    from app.chat import DocumentChat
    from app.settings import Settings
    from tests import tiny
    from tests.chat.opened import SHORT, finish

    chat = DocumentChat.open(Settings(home=tmp_path), engine=tiny.engine())
    done = finish(chat.ask(f"who? {BYTE}", generation=SHORT))
    assert chat.saved.messages(done.chat)[0].content == "who? caf\ufffd"
    chat.saved.rename_chat(done.chat, HALF + "\n")
    assert chat.saved.chat(done.chat).title == "smile \ufffd"
    chat.transfers.export_json(done.chat).encode()
    chat.close()


def test_names_of_files_stay_unless_no_system_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "restore", "a\ud83db", "--home", str(tmp_path)]) == 1
    assert "no sound copy of the library (a\ufffdb was asked for" in capsys.readouterr().err
    assert cli.main(["store", "restore", "a\udcffb", "--home", str(tmp_path)]) == 1  # a byte that is not UTF-8
    taken = _whole(parser().parse_args(["read", "a\ud83db", "a\udcffb"])).paths
    assert taken == [Path("a\ufffdb"), Path("a\udcffb")]
