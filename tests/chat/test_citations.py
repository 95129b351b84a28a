"""From attention on regions to passages."""

import pytest

from app.chat import citations
from app.chat.citations import Attached
from app.errors import InputError
from app.ingest import spans
from app.records import DocumentInfo, Part
from tests import tiny

SIZE = 8


def attach(texts: list[str], labels: list[str] | None = None, first: int = 0, title: str = "Book"):
    """One memory over parts, with a tokenizer of one token per byte."""
    tokenizer = tiny.byte_tokenizer().backend_tokenizer
    tokenizer.encode_special_tokens = True
    names = labels or [str(i) for i in range(1, len(texts) + 1)]
    parts = [Part(i, name, text) for i, (name, text) in enumerate(zip(names, texts, strict=True), start=1)]
    (text,) = spans.encode(parts, tokenizer, 1)
    info = DocumentInfo("d" + title, title, "pdf", len(parts), len(text.token_ids), "read", "", "")
    return parts, Attached(info, 0, text, first, -(-len(text.token_ids) // SIZE)), tokenizer


def passages(mass: dict[int, float], parts, memory, tokenizer):
    values = [mass.get(region, 0.0) for region in range(memory.first_region + memory.regions)]
    return citations.evidence(values, [memory], lambda _, i: parts[i - 1], tokenizer, SIZE)


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


def test_no_attention_gives_no_passage():
    parts, memory, tokenizer = attach(["some text that is long enough"])
    assert passages({}, parts, memory, tokenizer) == []


def test_places_are_named_by_label_range_path_and_chapter():
    texts = ["a" * 20, "b" * 20, "c" * 20]
    parts, memory, _ = attach(texts, ["iv", "v", "vi"])

    def regions(spec):
        return citations.place_regions(spec, [memory], lambda _: parts, SIZE)

    assert regions("Book") == set(range(memory.regions))
    assert regions("Book:v") == {2, 3, 4, 5}
    assert regions("Book:iv-v") == regions("Book:iv") | regions("Book:v")
    with pytest.raises(InputError, match="no page"):
        regions("Book:xx")
    parts, memory, _ = attach(texts, ["src/a.py", "src/sub/b.py", "docs/c.md"])
    assert regions("Book:src") == regions("Book:src/a.py") | regions("Book:src/sub/b.py")
