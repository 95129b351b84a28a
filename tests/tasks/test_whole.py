"""What code finds in whole texts, and how it is put together."""

import pytest

from app.records import DocumentInfo, Part
from app.tasks.listing import Gone, listing, roman
from app.tasks.whole import Task, chosen, notes_of, occurrences, recognise

INFO = DocumentInfo("d1", "Book", "book", 3, 300, "read", "", "")


@pytest.mark.parametrize(
    ("question", "task"),
    [
        ('How often does "Quillfeather" occur in the text?', Task("count", "Quillfeather")),
        ("How many times is Captain Ahab mentioned?", Task("count", "Captain Ahab")),
        ("Count the occurrences of run_app", Task("count", "run_app")),
        ('How many times does the text say "the old mill"?', Task("count", "the old mill")),
        ("List all places where Zorro is mentioned.", Task("places", "Zorro")),
        ("Show all mentions of Bingley", Task("places", "Bingley")),
        ("All places where entropy is defined", Task("definitions", "entropy")),
        ("List all functions in src/app.py", Task("definitions", place="src/app.py")),
        ("List the chapters", Task("contents")),
        ("Make a timeline", Task("timeline")),
        ("List all people and who they are", Task("names")),
        ("What changed between the two versions?", Task("compare")),
        ("Compare the documents", Task("compare")),
        ("What changed between chapter 3 and chapter 9?", Task("changes", place="chapter 3\nchapter 9")),
    ],
)
def test_questions_about_the_whole_text_are_recognised(question: str, task: Task) -> None:
    assert recognise(question) == task


@pytest.mark.parametrize(
    "question",
    ["How often does it rain?", "How many ships are there?", "Who keeps the light?", "What is the name of the captain?",
     "How many times is it mentioned?", "Why did the people leave?", "What changed?", ""],
)  # fmt: skip
def test_others_are_left_to_the_model(question: str) -> None:
    assert recognise(question) is None


def test_a_chosen_question_is_about_its_only_name() -> None:
    assert chosen("Where do we meet Zorro?") == Task("places", "Zorro")
    assert chosen("Does Zorro know Bernardo?") is None and chosen("Why is it so?") is None


def test_whole_words_count_in_any_case_and_over_line_ends() -> None:
    text = "The old\nmill, THE OLD MILL; the old millers. Athe old mill"
    assert [text[a:b] for a, b in occurrences("the old mill", text)] == ["The old\nmill", "THE OLD MILL"]


def told(task: Task, *texts: str, **more) -> tuple[str, list[str]]:
    parts = {n: Part(n, f"p{n}", text, **more) for n, text in enumerate(texts, 1)}
    notes = [note for part in parts.values() for note in notes_of(task, part)]
    made = listing(task, [Gone(INFO, parts, notes, len(parts))], lambda info, part, start, end: part.label)
    assert [number for _, number in made.marks] == list(range(1, len(made.passages) + 1))
    return made.text, [passage.text for passage in made.passages]


def test_every_place_is_counted_and_the_first_are_listed() -> None:
    text, passages = told(Task("count", "Zorro"), "Zorro came. Then Zorro left.", "Nobody.", "zorro! " * 50)
    assert text.startswith("“Zorro” stands 52 times in Book, in 2 of 3 parts:") and "and 12 more" in text
    assert passages[:2] == ["Zorro came.", "Then Zorro left."] and len(passages) == 40
    assert told(Task("count", "Bernardo"), "Zorro came.")[0] == "“Bernardo” stands 0 times in Book."


def test_dates_come_in_the_order_of_time() -> None:
    text, _ = told(Task("timeline"), "In 1851 it began. On 3 May 1849 she left.", "By March 2, 1849, all was over.")
    days = [line.split(":")[0] for line in text.splitlines() if line.startswith("- ")]
    assert days == ["- March 2, 1849", "- 3 May 1849", "- 1851"]


def test_names_are_told_from_words_that_begin_sentences() -> None:
    text, _ = told(
        Task("names"),
        "We met Zorro. Then came Zorro and Don Diego. They saw Zorro, and Don Diego. We saw Don Diego. Then they left.",
    )
    assert (
        "- Zorro, 3 times" in text
        and "- Don Diego, 3 times" in text
        and "Then" not in text.split("- ", 1)[1].split(":")[0]
    )


def test_changes_tell_who_comes_and_goes() -> None:
    parts = {
        1: Part(1, "1", "we met Zorro, and Zorro, and Zorro. we saw Lolita, Lolita, Lolita.", "Chapter III. The mill"),
        2: Part(2, "2", "we met Pedro, and Pedro, and Pedro. we saw Lolita.", "Chapter IX. The end"),
    }
    task = recognise("What changed between chapter 3 and chapter 9?")
    notes = [note for part in parts.values() for note in notes_of(task, part)]
    text = listing(task, [Gone(INFO, parts, notes, 2)], lambda *_: "x").text
    assert "Named in chapter 3 and not in chapter 9 (1):\n\n- Zorro, 3 times" in text
    assert "Named in chapter 9 and not in chapter 3 (1):\n\n- Pedro, 3 times" in text and "Lolita (3 and 1)" in text
    assert (
        "has no chapter 7"
        in listing(Task("changes", place="chapter 7\nchapter 9"), [Gone(INFO, parts, notes, 2)], lambda *_: "x").text
    )


def test_definitions_in_code_and_in_prose() -> None:
    code = "src/a.py (Python)\ndef one():\n    pass\nclass Two:\n    def three(self): ..."
    text, passages = told(Task("definitions"), code, first_line=0)
    assert text.startswith("Book has 3 definitions:") and passages == [
        "def one():",
        "class Two:",
        "    def three(self): ...",
    ]
    assert told(Task("definitions", "Two"), code, first_line=0)[1] == ["class Two:"]
    assert told(Task("definitions", "entropy"), "Entropy is a measure. We like entropy.")[1] == [
        "Entropy is a measure."
    ]


def test_contents_are_headings_each_once() -> None:
    text, _ = told(Task("contents"), "CHAPTER I\n\nIt began so.", "and went on", chapter="CHAPTER I")
    assert text.startswith("Book has 1 heading:")
    assert roman(49) == "XLIX"
