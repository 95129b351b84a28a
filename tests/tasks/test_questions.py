"""Questions made from texts: every answer stands where it is said to stand, and what is quoted stands only there."""

import random
import re
from pathlib import Path

import pytest

from app.ingest.codebase import load_codebase
from app.ingest.text import find_headings
from app.tasks.questions import CODE_KINDS, KINDS, PROSE_KINDS, flat, is_code, questions

ROOT = Path(__file__).resolve().parents[2]
STORY = """\
CHAPTER I - The Inn

Mr. Harker, the lawyer of the town, lived in Dunwich with his sister. He was born there. Tom had a black dog \
named Growler. In the spring of 1883 the inn held forty guests and one cook. "Where is my breakfast this morning?" \
asked Mr. Harker.

"It is still in the oven, sir," said Tom, laughing.

CHAPTER II - The Sea

Mr. Harker walked down to the cold sea with a letter in his hand. The waves were higher than he had ever seen them. \
A skerry is a rock that the sea covers at high water. Mr. Harker looked at it and thought of Dunwich.
"""
CODE = '''\
a.py (Python)
from b import helper
LIMIT = 30


class Base:
    """Everything starts from this one class."""

    def open(self, path: str) -> bytes:
        return helper(path)


class Door(Base):
    def shut(self, hard: bool = False):
        self.closed = hard
        return self.closed
sub/b.py (Python)
def helper(path):
    return path.encode("utf-8")
notes.md (Markdown)
# Notes
class Fake is no code.
'''


@pytest.fixture(scope="module")
def book() -> str:
    return (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")


def asked(text: str, kind: str, seeds: int = 6) -> dict[str, str]:
    """All questions of one kind, whatever the wording drawn."""
    made = [q for seed in range(seeds) for q in questions(text, random.Random(seed), kinds=[kind])]
    return {q.question: q.answer for q in made}


def check(text: str, made) -> None:
    for q in made:
        assert 0 <= q.start < q.end <= len(text)
        there = flat(text[q.start : q.end])
        if q.kind == "count":
            spots = [(q.start, q.end), *q.places]
            assert len(spots) == int(q.answer) and len({flat(text[slice(*s)]) for s in spots}) == 1
            assert there in q.question
        elif q.kind == "contents":
            assert q.answer.split("\n") == [flat(text[slice(*s)]) for s in [(q.start, q.end), *q.places]]
        else:
            assert there == flat(q.answer), q  # a line of code may hold two blanks
        prose = q.question if "`" not in q.question else ""  # quotation marks of code quote nothing
        quoted = [part.removesuffix(" ...") for part in re.findall('"([^"]{30,})"', prose)]
        assert all(flat(text).count(part) == 1 for part in quoted if "____" not in part), q
        for part in quoted if "____" in "".join(quoted) else ():
            assert flat(text).count(part.replace("____", q.answer)) == 1, q


def test_answers_of_a_book_stand_at_their_places(book):
    made = questions(book, random.Random(0))
    check(book, made)
    wanted = set(PROSE_KINDS) - {"named", "fact", "definition", "who_is", "contents"}  # this book has few of those
    assert wanted <= {q.kind for q in made}
    assert len(made) > 150


def test_answers_of_code_stand_at_their_places():
    document = load_codebase(ROOT / "app" / "ingest", "ingest")
    text = "".join(part.text for part in document.parts)
    made = questions(text, random.Random(0))
    check(text, made)
    assert {q.kind for q in made} <= set(CODE_KINDS)
    assert {"defined_in", "arguments", "constant", "imported_from", "docstring", "next_line"} <= {q.kind for q in made}
    for q in made:
        if q.kind == "defined_in":
            name = re.search("`(.*)`", q.question)[1]
            source = (ROOT / "app" / "ingest" / q.answer).read_text(encoding="utf-8")
            assert re.search(rf"(def|class) {name}\b", source)


def test_who_said_and_did_and_is():
    said = asked(STORY, "who_said")
    assert said['Who asked: "Where is my breakfast this morning?"'] == "Mr. Harker"
    assert said['Who said: "It is still in the oven, sir"?'] == "Tom"
    assert asked(STORY, "who_did") == {
        "Who walked down to the cold sea with a letter in his hand?": "Mr. Harker",
        "Who had a black dog named Growler?": "Tom",
        "Who looked at it and thought of Dunwich?": "Mr. Harker",
    }
    assert asked(STORY, "who_is")["Who is Mr. Harker?"] == "the lawyer of the town"


def test_names_numbers_and_definitions():
    assert asked(STORY, "named")["What is the black dog called?"] == "Growler"
    assert asked("Adam Miller lived in Dunwich until he died.", "fact") == {"Where did Adam Miller live?": "Dunwich"}
    assert asked(STORY, "definition")["What is a skerry?"] == "a rock that the sea covers at high water"
    text = "The old inn at the corner of the road held forty guests that night."
    gap = "The old inn at the corner of the road held ____ guests that night."
    assert asked(text, "number") == {
        f'Which number is missing in "{gap}"?': "forty",
        f'Which number does the text give here: "{gap}"?': "forty",
    }


def test_what_follows_and_where():
    following = asked(STORY, "next_sentence", 12)
    first = "The waves were higher than he had ever seen them."
    assert following[f'What does the text say right after "{first}"?'].startswith("A skerry is a rock")
    assert asked(STORY, "chapter_title")["What is CHAPTER II called?"] == "The Sea"
    assert asked(STORY, "chapter_of")[f'Under which heading stands "{first}"?'] == "CHAPTER II - The Sea"
    assert asked(STORY, "chapter_begins")['With which sentence does "CHAPTER II - The Sea" begin?'].startswith(
        "Mr. Har"
    )
    third = STORY + "\nCHAPTER III - The End\n\nHe slept.\n"
    assert set(asked(third, "contents").values()) == {
        "CHAPTER I - The Inn\nCHAPTER II - The Sea\nCHAPTER III - The End"
    }
    assert asked(STORY, "count")['How often does "Dunwich" occur in the text?'] == "2"


def test_what_stands_twice_is_not_asked():
    line = '"I have lost my silver watch again," said {}, and went out of the room.\n\n'
    assert asked(line.format("Anna"), "who_said")
    assert not asked(line.format("Anna") + line.format("Peter"), "who_said")
    assert not asked(line.format("Anna").replace(" silver", "\nsilver") + line.format("Peter"), "who_said")


@pytest.mark.parametrize("marks", ['""', "“”", "‘’", "''"])
def test_speech_in_any_marks(marks):
    first, last = marks
    text = f"{first}I saw the ship go down,{last} said Anna. {first}It was night and we were all asleep then.{last}\n\n"
    assert set(asked(text, "who_said").values()) == {"Anna"}
    assert not asked(text, "cloze")  # what is said is no narration


def test_broken_lines_make_no_difference():
    wrapped = STORY.replace("cold sea with", "cold sea\nwith").replace("asked Mr.", "asked\nMr.")
    assert asked(wrapped, "who_said") == asked(STORY, "who_said")
    check(wrapped, questions(wrapped, random.Random(1)))


def test_questions_about_code():
    assert is_code(CODE) and not is_code(STORY)
    assert asked(CODE, "defined_in")["Which file defines `helper`?"] == "sub/b.py"
    assert asked(CODE, "method_of")["Which class has the method `shut`?"] == "Door"
    assert asked(CODE, "arguments")["Which arguments does `shut` take?"] == "self, hard: bool = False"
    assert asked(CODE, "constant")["What is the value of `LIMIT`?"] == "30"
    assert asked(CODE, "imported_from") == {"From which module is `helper` imported?": "b"}
    assert asked(CODE, "base_class")["Which class does `Door` inherit from?"] == "Base"
    assert asked(CODE, "docstring")["What is the docstring of `Base`?"] == "Everything starts from this one class."
    assert asked(CODE, "next_line")["Which line comes right after `self.closed = hard`?"] == "return self.closed"
    assert not any("Fake" in q for kind in CODE_KINDS for q in asked(CODE, kind))
    check(CODE, questions(CODE, random.Random(0)))


def test_questions_depend_on_the_seed_alone(book):
    text = book[:30_000]
    first, again, other = (questions(text, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert max(sum(q.kind == kind for q in first) for kind in KINDS) == 20
    assert len(questions(text, random.Random(0), kinds=["cloze"], most=3)) == 3


def test_hopeless_texts_give_nothing_and_unknown_kinds_are_refused():
    for text in ("", "\n\n", "no sentence here", "1 2 3\n" * 50, "x" * 5000, '"', "Ach.\n" * 30):
        assert questions(text, random.Random(0)) == []
    with pytest.raises(ValueError, match="riddle"):
        questions("A text.", random.Random(0), kinds=["riddle"])


def test_a_moved_question_points_into_the_longer_text():
    filler = "Something else stands here.\n\n"
    check(filler + STORY, [q.moved(len(filler)) for q in questions(STORY, random.Random(0)) if q.kind != "count"])


def test_headings_stand_where_they_are_found():
    text = "# One\n\ntext\n\n## Two ##\nmore\n\n```\n# no heading\n```\n"
    found = find_headings(text, markdown=True)
    assert [(title, text[start:end]) for start, end, title in found] == [("One", "One"), ("Two", "Two")]
    (first, _) = find_headings(STORY)
    assert STORY[first[0] : first[1]] == "CHAPTER I - The Inn" == first[2]
