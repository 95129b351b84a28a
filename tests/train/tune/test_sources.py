"""Files to learn from: what each kind becomes, what is refused with which words, and what is kept back."""

import json
import lzma
import zipfile
from pathlib import Path

import pytest

from app.errors import ConfigError, InputError
from app.train.tune.instructions import Entry, parse
from app.train.tune.sources import Source, divide, look, read_sources, without

ROOT = Path(__file__).resolve().parents[3]
ALPACA = {"instruction": "Say hello.", "input": "", "output": "Hello."}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}]}
MESSAGES = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]}


def lines(*items) -> str:
    return "\n".join(json.dumps(item) for item in items) + "\n"


def only(path: Path, kind: str = "") -> Source:
    (source,) = read_sources([path], [kind])
    return source


@pytest.mark.parametrize(
    ("item", "turns"),
    [
        (ALPACA, (("user", "Say hello."), ("assistant", "Hello."))),
        ({**ALPACA, "input": "To Ada.", "id": 7}, (("user", "Say hello.\n\nTo Ada."), ("assistant", "Hello."))),
        (SHAREGPT, (("user", "Hello?"), ("assistant", "Yes."))),
        (MESSAGES, (("user", "Hello?"), ("assistant", "Yes."))),
        ({"text": "A tale."}, ()),
    ],
)
@pytest.mark.parametrize("form", ["lines", "list", "indented list"])
def test_each_shape_in_each_form(item, turns, form):
    items = [item, item]
    text = lines(*items) if form == "lines" else json.dumps(items, indent=1 if form == "indented list" else None)
    entries, empty = parse(text, "f.json")
    assert [entry.turns for entry in entries] == [turns] * 2 and empty == 0
    assert entries[0].where == "f.json, line 1" or form == "indented list"


def test_messages_may_come_with_a_document_and_a_system_turn():
    item = {
        "document": "The sea is cold.",
        "messages": [{"role": "system", "content": "Be brief."}, *MESSAGES["messages"]],
    }
    ((entry,), _) = parse(lines(item), "f.jsonl")
    assert entry.text == "The sea is cold." and entry.turns[0] == ("system", "Be brief.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing stands in it"),
        ("\n \n", "nothing stands in it"),
        ("[]", "nothing stands in it"),
        (lines(ALPACA) + "{broken\n", r'line 2: no JSON \(.*"\{broken"; wanted is one object on each line'),
        (lines(ALPACA, SHAREGPT), "line 2: this is conversations of from/value, but line 1 is instruction/output"),
        (lines(ALPACA, 7), "line 2: found int 7; wanted is instruction/output"),
        (lines({"prompt": "x", "response": "y"}), "line 1: found an object with prompt, response; wanted is"),
        (lines({**ALPACA, "output": ["a"]}), r'line 1: output is list \["a"\]; wanted is a string'),
        (lines({**ALPACA, "instruction": " "}), "line 1: instruction is empty"),
        (lines({"messages": [{"role": "narrator", "content": "x"}]}), 'turn 1 is from "narrator"; known are system'),
        (
            lines({"messages": [{"role": "user", "value": "x"}]}),
            "turn 1 is an object with role, value; wanted are role and",
        ),
        (lines({"messages": [{"role": "user", "content": "x"}]}), "no turn is an answer"),
        (lines({"messages": [*MESSAGES["messages"], {"role": "system", "content": "x"}]}), "turn 3 is a system turn"),
        (lines({**ALPACA, "output": ""}), "all 1 answers in it are empty"),
        ('[\n{"text": "a"},\n{"text" "b"}]', "line 3: no JSON"),
        ('[\n{"text": "a"}\n{"text": "b"}]', 'line 3: found .*"text".*; wanted is a comma, or'),
        ('[{"text": "a"}]\n{"text": "b"}', "line 1: the list ends here, but more follows"),
        ('[{"text": "a"},]', "no JSON"),
    ],
)
def test_malformed_files_are_refused_with_line_and_what_is_wanted(text, message):
    with pytest.raises(InputError, match=message):
        parse(text, "f.jsonl")


def test_empty_answers_are_left_out_and_told(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(ALPACA, {**ALPACA, "output": " "}), encoding="utf-8")
    source = only(tmp_path / "a.jsonl")
    assert len(source.entries) == 1
    assert source.notes == ("a.jsonl: 1 of 2 left out, an answer in them is empty",)


def test_texts_packed_or_not_read_alike(tmp_path):
    story = "Once there was a cat.\n\nIt slept.\n"
    (tmp_path / "story.txt").write_text(story, encoding="utf-8")
    with lzma.open(tmp_path / "packed.txt.xz", "wt", encoding="utf-8") as file:
        file.write(story)
    with lzma.open(tmp_path / "asked.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write(lines(MESSAGES))
    for name in ("story.txt", "packed.txt.xz"):
        source = only(tmp_path / name)
        assert source.kind == "text" and [entry.text for entry in source.entries] == [story]
    assert only(tmp_path / "asked.jsonl.xz").kind == "instructions"


def test_a_pdf_is_a_text():
    source = only(ROOT / "tests" / "data" / "crazyones.pdf")
    assert source.kind == "text" and "crazy" in source.entries[0].text


def test_folders_hold_texts_or_code(tmp_path):
    books, code = tmp_path / "books", tmp_path / "code"
    for folder in (books, code, books / ".hidden"):
        folder.mkdir()
    (books / "a.txt").write_text("A tale.", encoding="utf-8")
    (books / "b.md").write_text("# Another tale", encoding="utf-8")
    (books / "c.jsonl").write_text(lines(MESSAGES), encoding="utf-8")
    (books / "cover.png").write_bytes(b"\x89PNG\0")
    (books / ".hidden" / "d.txt").write_text("Not this.", encoding="utf-8")
    (code / "a.py").write_text("print(1)\n", encoding="utf-8")
    (code / "b.py").write_text("print(2)\n", encoding="utf-8")
    (code / "README.md").write_text("# Two programs\n", encoding="utf-8")
    texts = only(books)
    assert texts.kind == "text" and len(texts.entries) == 3
    assert texts.notes == ("books: 1 files left out, such as cover.png",)
    program = only(code)
    assert program.kind == "code" and "b.py (Python)\nprint(2)\n" in program.entries[0].text
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.write(code / "a.py", "a.py")
    assert only(tmp_path / "code.zip").kind == "code"
    assert only(books, "instructions").entries[0].turns
    assert only(code, "text").entries[0].text == "# Two programs\n"
    assert look(code / "a.py") == "code"


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda p: None, "", "there is no such file"),
        (lambda p: p.write_bytes(b""), "", "empty"),
        (lambda p: p.write_bytes(b"\xfd7zXZ broken"), "", "cannot be unpacked"),
        (lambda p: lzma.open(p, "w").write(b"  \n"), "text", "only blanks"),
        (lambda p: lzma.open(p, "w").write(b'{"text": "\xff"}'), "instructions", "line 1: not UTF-8"),
        (lambda p: p.mkdir(), "text", "no text lies in it"),
        (lambda p: p.mkdir(), "instructions", "no .json or .jsonl file"),
        (lambda p: p.mkdir(), "poems", "kind 'poems' is not known"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, make, kind, message):
    path = tmp_path / "it.txt.xz"
    if (opened := make(path)) is not None and hasattr(opened, "close"):
        opened.close()
    with pytest.raises((InputError, ConfigError), match=message):
        only(path, kind)


def test_lists_are_checked():
    with pytest.raises(ConfigError, match="no files to learn from"):
        read_sources([])
    with pytest.raises(ConfigError, match="2 kinds for 1 files"):
        read_sources(["a.txt"], ["text", "code"])


def test_the_same_text_is_never_on_both_sides():
    texts = [f"Tale number {i}." for i in range(200)]
    first = Source("a", "text", tuple(Entry("a", text) for text in texts))
    spaced = Source("b", "text", tuple(Entry("b", text.replace(" ", "\n ")) for text in texts[::2]))
    learnt, kept = divide([first, spaced], 0.2)
    sides = [{" ".join(e.text.split()) for source in side for e in source.entries} for side in (learnt, kept)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(texts)
    assert 20 <= len(sides[1]) <= 60
    _, alone = divide([first], 0.2)
    assert {e.text for e in alone[0].entries} == sides[1]  # other files change nothing


def test_questions_about_one_document_stay_on_one_side():
    def ask(document: str, question: str) -> Entry:
        return Entry("f", document, (("user", question), ("assistant", "Yes.")))

    source = Source("f", "instructions", tuple(ask(f"Document {i // 5}", f"Is it {i}?") for i in range(200)))
    learnt, kept = divide([source], 0.3)
    assert not {e.text for e in learnt[0].entries} & {e.text for e in kept[0].entries}
    assert len({Entry("f", turns=(("user", q), ("assistant", "Yes."))).key for q in ("a", "b")}) == 2


def test_shares_that_leave_a_side_empty_are_refused():
    source = Source("a", "text", (Entry("a", "One tale."),))
    with pytest.raises(ConfigError, match="of 1 texts none is"):
        divide([source], 0.5)
    for share in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            divide([source], share)


def test_what_is_validated_with_is_not_learnt():
    learnt = Source("a", "text", (Entry("a", "One tale."), Entry("a", "Two tales.")))
    validation = [Source("v", "text", (Entry("v", "One\ntale."),))]
    (left,) = without([learnt], validation)
    assert [entry.text for entry in left.entries] == ["Two tales."]
    assert left.notes == ("a: 1 left out, they are validated with",)
    with pytest.raises(ConfigError, match="none is left"):
        without([Source("a", "text", learnt.entries[:1])], validation)
