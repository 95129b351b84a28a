"""Messages in the shapes that clients send become one talk."""

import base64

import pytest

from app.api.errors import ApiError
from app.api.messages import FilePart, read_messages, texts

USER, BOT, SYSTEM = "user", "assistant", "system"


def said(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    ("messages", "system", "turns", "question"),
    [
        (said((USER, "Who?")), "", (), "Who?"),
        (said((SYSTEM, "Be brief."), (USER, "a"), (BOT, "b"), (USER, "c")), "Be brief.", (("a", "b"),), "c"),
        (said((SYSTEM, "x"), (SYSTEM, "y"), (USER, "a"), (BOT, "b"), (SYSTEM, "z"), (USER, "c")), "x\n\ny\n\nz",
         (("a", "b"),), "c"),
        (said(("developer", "x"), (USER, "a"), (USER, "b")), "x", (), "a\n\nb"),
        (said((USER, "a"), (BOT, "b"), (BOT, "c"), (USER, "d")), "", (("a", "b\n\nc"),), "d"),
        (said((BOT, "Hello!"), (USER, "a")), "Hello!", (), "a"),
        (said((USER, ["one", {"type": "text", "text": "two"}])), "", (), "one\n\ntwo"),
        ([{"role": USER, "content": "a"},
          {"type": "message", "role": BOT, "content": [{"type": "output_text", "text": "b"}]},
          {"role": USER, "content": [{"type": "input_text", "text": "c"}]}], "", (("a", "b"),), "c"),
        (said((USER, "a"), (BOT, ""), (USER, "b")), "", (), "a\n\nb"),
    ],
)  # fmt: skip
def test_a_talk(messages, system, turns, question):
    talk = read_messages(messages)
    assert (talk.system, talk.turns, talk.question, talk.files) == (system, turns, question, ())


def test_instructions_stand_before_the_messages():
    assert read_messages(said((SYSTEM, "b"), (USER, "q")), "a").system == "a\n\nb"


def test_files_by_id_and_by_content():
    data = "data:text/plain;base64," + base64.b64encode(b"The keeper is Ann.").decode()
    content = [
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_file", "filename": "note.txt", "file_data": data},
        {"type": "text", "text": "Who?"},
    ]
    assert read_messages(said((USER, content))).files == (
        FilePart(id="file-1"), FilePart(name="note.txt", data=b"The keeper is Ann."),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (said((USER, "a"), (BOT, "b")), "the last message must be a question"),
        (said((USER, "  ")), "the last message must be a question"),
        (said(("tool", "x"), (USER, "q")), "messages[0].role = 'tool': known are"),
        (said((USER, 7)), "messages[0].content = 7: must be a text"),
        (said((USER, [{"type": "image_url", "image_url": {"url": "x"}}])), "content[0].type = 'image_url': texts and"),
        (said((USER, [{"type": "file", "file": {"file_data": "%%"}}])), "is no base64"),
        (said((USER, [{"type": "file", "file": {"file_url": "http://x"}}])), "files are not fetched from addresses"),
        ([{"type": "function_call", "name": "f"}], "calls no tools"),
    ],
)
def test_what_is_refused(messages, words):
    with pytest.raises(ApiError) as refused:
        read_messages(messages)
    assert words in str(refused.value) and refused.value.status == 400


def test_one_prompt_at_a_time():
    assert texts("a") == texts(["a"]) == "a"
    with pytest.raises(ApiError, match="one prompt is answered at a time"):
        texts(["a", "b"])
