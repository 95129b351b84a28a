"""Names of places, and the regions that an answer may see."""

import pytest

from app.chat.focus import EVERYTHING, MOST_CHOICES, Sight, choices, find_place, look, place_regions
from app.errors import InputError
from app.records import Evidence
from tests.chat.attached import SIZE, attach

PAGES = ["a" * 20, "b" * 20, "c" * 20, "d" * 20]


def regions(spec, memory, parts):
    return place_regions(find_place(spec, [memory], lambda _: parts), [memory], SIZE)


def test_pages_are_named_by_label_and_range():
    parts, memory, _ = attach(PAGES, ["iv", "v", "vi", "1"])
    assert regions("Book", memory, parts) == set(range(memory.regions))
    assert regions("dBo#v", memory, parts) == {2, 3, 4, 5}  # bytes 22 to 42 behind BOS, in regions of 8
    assert regions("Book#iv-v", memory, parts) == regions("Book#iv", memory, parts) | {2, 3, 4, 5}
    assert regions("Book#v-iv", memory, parts) == regions("Book#iv-v", memory, parts)


def test_chapters_are_named_by_title_or_its_first_words():
    titles = ["Chapter 1. Loomings", "Chapter 1. Loomings", "Chapter 10. A Bosom Friend", "Epilogue"]
    parts, memory, _ = attach(PAGES, chapters=titles)
    first = regions("Book#1-2", memory, parts)
    assert regions("Book#chapter 1. loomings", memory, parts) == regions("Book#Chapter 1", memory, parts) == first
    assert regions("Book#Chapter 10", memory, parts) == regions("Book#3", memory, parts)


def test_files_are_named_by_path_folder_and_pattern():
    parts, memory, _ = attach(PAGES, ["src/a.py", "src/sub/b.py", "src/c.md", "setup.py"], kind="code")
    both = regions("Book#src/a.py", memory, parts) | regions("Book#src/sub/b.py", memory, parts)
    assert regions("Book#src/*.py", memory, parts) == both
    assert regions("Book#src", memory, parts) == both | regions("Book#src/c.md", memory, parts)
    assert regions("Book#*.py", memory, parts) == both | regions("Book#setup.py", memory, parts)


def test_titles_may_hold_the_sign():
    parts, memory, _ = attach(PAGES, title="C# in depth")
    assert find_place("C# in depth", [memory], lambda _: parts).name == "C# in depth"
    assert find_place("C# in depth#2", [memory], lambda _: parts).parts == {2}


def test_a_title_that_two_documents_bear_is_told_as_an_id():
    parts, memory, _ = attach(PAGES)
    twin = attach(PAGES, title="Book")[1]
    twin = type(twin)(type(twin.document)(**{**vars(twin.document), "id": "other"}), 0, twin.text, memory.regions, 11)
    place = find_place("other#2", [memory, twin], lambda _: parts)
    assert place.name == "other#2"
    assert min(place_regions(place, [memory, twin], SIZE)) > memory.regions


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("Bible", "attached: Book; Code"),
        ("Book#99", "pages 1 to 4 and the chapters One; Two"),
        ("Code#src/x.py", "the files f0.py; f1.py.*; f11.py and 3 more"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(spec, told):
    book, memory, _ = attach(PAGES, chapters=["One", "One", "Two", "Two"])
    code, other, _ = attach(["x"] * 15, [f"f{i}.py" for i in range(15)], kind="code", title="Code")
    with pytest.raises(InputError, match=told):
        find_place(spec, [memory, other], lambda id: book if id == "dBook" else code)


def see(sight, hidden=()):
    parts, one, _ = attach(PAGES, title="One")
    two = attach(PAGES, title="Two", first=one.regions)[1]
    return one, look(sight, hidden, [one, two], lambda _: parts, SIZE)


def test_focus_alone_may_be_seen_and_mute_wins():
    one, (sight, allowed) = see(Sight(("One",), ("dOne#2",)))
    assert sight == Sight(("One",), ("One#2",))
    assert [i for i, seen in enumerate(allowed) if seen] == [i for i in range(one.regions) if i not in (2, 3, 4, 5)]
    one, (_, allowed) = see(Sight(mute=("One",)))
    assert not any(allowed[: one.regions]) and all(allowed[one.regions :])
    assert see(Sight())[1] == (Sight(), None)


def test_a_focus_that_is_muted_whole_is_refused():
    with pytest.raises(InputError, match="all of it is muted"):
        see(Sight(("One#2",), ("One",)))


def test_a_passage_is_hidden_beside_what_is_muted():
    item = Evidence("e2-1", "dTwo", "Two", "1", 1, 0, 5, "aaaaa", 0.5, ((0, 0), (0, 1)))
    one, (_, allowed) = see(Sight(("Two",), without="e2-1"), [item])
    assert [i - one.regions for i, seen in enumerate(allowed) if seen] == list(range(2, one.regions))
    gone = Evidence("e2-1", "d9", "Nine", "1", 1, 0, 5, "aaaaa", 0.5, ((0, 0),))
    with pytest.raises(InputError, match="not attached"):
        see(Sight(), [gone])


def test_what_an_answer_saw_is_in_its_stats():
    assert Sight.of({"focus": ["One"], "mute": [], "without": "e2-1"}) == Sight(("One",), (), "e2-1")
    assert not Sight.of({"tokens_read": 3})


def test_lists_offer_chapters_or_folders_and_files():
    parts, memory, _ = attach(PAGES, chapters=["One", "One", "Two", "Two"])
    assert choices(memory.document, parts) == [
        ("Book", "dBook"), ("Book › One", "dBook#One"), ("Book › Two", "dBook#Two")]  # fmt: skip
    parts, memory, _ = attach(PAGES, ["src/a.py", "src/sub/b.py", "src/c.md", "setup.py"], kind="code")
    specs = [spec for _, spec in choices(memory.document, parts)]
    assert specs[:3] == ["dBook", "dBook#src/", "dBook#src/sub/"] and specs[-1] == "dBook#setup.py"
    assert all(regions(spec, memory, parts) for spec in specs)
    parts, memory, _ = attach(["x"] * 1000, chapters=[f"c{i}" for i in range(1000)])
    assert len(choices(memory.document, parts)) == MOST_CHOICES + 1


def test_what_stands_beside_a_document_is_muted_unless_a_focus_says_where_to_look():
    parts, memory, _ = attach(PAGES)

    def seen(*focus):
        beside = {"front matter": frozenset({1}), "licence": frozenset({4})}
        return look(Sight(focus=focus), [], [memory], lambda _: parts, SIZE, lambda _: beside)

    sight, allowed = seen()
    assert sight.mute == ("Book#front matter", "Book#licence")
    assert sight.words == "did not look in Book#front matter; Book#licence"
    front, rest = regions("Book#1", memory, parts), regions("Book#2-3", memory, parts)
    assert {region for region, may in enumerate(allowed) if may} >= rest  # what both share can be seen
    assert not any(allowed[region] for region in front - rest)
    assert seen("Book")[0].mute == () and all(seen("Book")[1])
    assert seen(EVERYTHING) == (Sight((EVERYTHING,)), None) and not Sight((EVERYTHING,)).hides
    assert Sight((EVERYTHING,), ("Book#2",)).words == "looked in front matter and licences too, did not look in Book#2"
    only, allowed = seen("Book#1", EVERYTHING)
    assert only.focus == ("Book#1", EVERYTHING) and {i for i, may in enumerate(allowed) if may} == front
    assert look(Sight(), [], [memory], lambda _: parts, SIZE, lambda _: {}) == (Sight(), None)
