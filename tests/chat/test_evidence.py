"""From attention on regions to passages."""

from types import SimpleNamespace

from app.chat import evidence
from tests.chat.attached import SIZE, attach


def passages(mass: dict[int, float], parts, memory, tokenizer, **more):
    values = [mass.get(region, 0.0) for region in range(memory.first_region + memory.regions)]
    kept = SimpleNamespace(part=lambda _, i: parts[i - 1], line_of=lambda _, i: 100 * i)
    return evidence.evidence(values, [memory], kept, tokenizer, SIZE, **more)


def test_a_passage_of_a_plain_text_is_told_by_its_line():
    text = "alpha\nbeta\ngamma delta epsilon zeta eta theta iota"
    for kind, label in (("text", "line 202"), ("pdf", "2")):
        parts, memory, tokenizer = attach(["one page", text], kind=kind)
        (found,) = passages({3: 1.0}, parts, memory, tokenizer)
        assert (found.part, found.label) == (2, label)


def test_a_passage_over_several_parts_is_the_part_that_says_the_answer():
    texts = ["The key is 9.", "Nothing of it is said in this longer part."]
    parts, memory, tokenizer = attach(texts, labels=["cell 1", "cell 2"])
    regions = dict.fromkeys(range(memory.regions), 1.0)
    for answer, label in (("The key is 9.", "cell 1"), ("Nothing else.", "cell 2"), ("", "cell 2")):
        (found,) = passages(regions, parts, memory, tokenizer, answer=answer)
        assert (found.label, found.text) == (label, texts[int(label[-1]) - 1]) and len(found.regions) == memory.regions


def test_the_best_region_becomes_a_passage_and_neighbours_join():
    parts, memory, tokenizer = attach(["alpha beta gamma delta epsilon zeta eta theta iota kappa"])
    (found,) = passages({3: 2.0, 4: 1.0}, parts, memory, tokenizer)
    assert found.regions == ((0, 3), (0, 4)) and found.weight == 1.0
    assert found.text == parts[0].text[found.char_start : found.char_end].strip()
    assert found.text.split()[0] in parts[0].text.split()


def test_many_faint_regions_still_show_the_best():
    parts, memory, tokenizer = attach(["word " * 400])
    mass = {region: 1.0 for region in range(1, 200)} | {77: 1.5}
    found = passages(mass, parts, memory, tokenizer)
    assert (0, 77) in [region for item in found for region in item.regions]


def test_a_last_region_that_holds_the_line_end_alone_is_no_passage():
    parts, memory, tokenizer = attach(["x" * (4 * SIZE - 1)])
    assert len(memory.text.token_ids) == 4 * SIZE + 1
    assert passages({4: 1.0}, parts, memory, tokenizer) == []


def test_no_attention_gives_no_passage():
    parts, memory, tokenizer = attach(["some text that is long enough"])
    assert passages({}, parts, memory, tokenizer) == []


def test_a_passage_of_words_stands_first_when_it_holds_the_answer():
    text = "".join(f"word{n} " for n in range(60)) + "Orlov sailed for Malta. " + "more " * 60
    parts, memory, tokenizer = attach([text])
    regions = -(-len(memory.text.token_ids) // SIZE)
    place = (text.index("Malta") + 1) // SIZE
    run, other, looked = [place - 1, place, place + 1], [3, 4, 5], regions - 4
    by = {region: "words" for region in (*run, *other)} | {looked: "attention", looked - 1: "attention"}
    more = {"found_by": by, "by_words": [other, run], "answer": "To Malta."}
    found = passages({looked: 2.0, place: 0.1}, parts, memory, tokenizer, **more)
    assert [item.found_by for item in found] == ["words", "attention"]  # the other one was not looked at
    assert "Malta" in found[0].text and [region for _, region in found[0].regions] == run
    assert found[0].weight < found[1].weight
    unseen = passages({looked: 2.0}, parts, memory, tokenizer, found_by={looked: "attention"}, by_words=[run])
    assert [item.found_by for item in unseen] == ["attention"]
    whole = passages({looked: 2.0, place: 0.1}, parts, memory, tokenizer, by_words=[other, run], answer="To Malta.")
    assert "Malta" in whole[0].text and [item.found_by for item in whole] == ["", ""]  # the answer saw all


def test_where_the_model_always_looks_is_left_out_unless_the_answer_means_it():
    parts, memory, tokenizer = attach(["word " * 400])
    unasked = [0.1] * memory.regions
    unasked[0], unasked[7] = 30.0, 20.0  # a title page, say
    told = {0: 0.4, 7: 0.3, 50: 0.2}
    for answer, places in ((told, [50]), (told | {7: 3.0}, [7]), ({0: 0.4, 7: 0.3}, [0, 7])):
        found = passages(answer, parts, memory, tokenizer, unasked=unasked)
        assert [region for item in found for _, region in item.regions] == places
    (kept,) = passages(told, parts, memory, tokenizer, unasked=unasked)
    assert kept.weight == 0.2222  # of all attention
    assert len(passages(told, parts, memory, tokenizer, unasked=unasked[:-1])) == 3  # of another text


def test_what_an_answer_saw_of_a_long_text_is_compared_alone():
    parts, memory, tokenizer = attach(["word " * 400])
    unasked = [1.0] * memory.regions
    unasked[0] = 0.1 * memory.regions  # a tenth of all, and much of what an answer that sees few regions sees
    found = passages({0: 0.5, 50: 0.3, 60: 0.2}, parts, memory, tokenizer, unasked=unasked)
    assert [region for item in found for _, region in item.regions] == [50, 60]
    (meant,) = passages({0: 1.0, 50: 0.005}, parts, memory, tokenizer, unasked=unasked)
    assert meant.regions == ((0, 0),)
