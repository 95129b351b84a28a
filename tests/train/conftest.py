"""A data folder in the layout of the real one: two books, a question set of each name, one code file."""

import gc
import json
import lzma
import zipfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from app.train import corpus
from app.train.data import BookTokens, SampleMaker

ROOT = Path(__file__).resolve().parents[2]
FROZEN = ROOT / "models" / "lectern-small"


@pytest.fixture(scope="session", autouse=True)
def quick_collection():
    """Every start of a Trainer collects garbage, among all that the libraries made at import."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tokenizer():
    """The shipped one."""
    return AutoTokenizer.from_pretrained(FROZEN)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("books", "qa", "code"):
        (folder / name).mkdir()
    text = (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")
    rows = ["file\tsplit"]
    for split, part in (("train", text[:120_000]), ("valid", text[120_000:150_000])):
        rows.append(f"{split}.txt.xz\t{split}")
        with lzma.open(folder / "books" / f"{split}.txt.xz", "wt", encoding="utf-8") as file:
            file.write(part)
    (folder / "books" / "index.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    entry = {
        "text": "Ada keeps a grey cat. The cat is called Tom, and it sleeps on the stove.",
        "qas": [
            {"question": "What is the cat called?", "answers": ["Tom, the cat", "Tom"]},
            {"question": "Who is the king?", "answers": [], "answerable": False},
        ],
    }
    for name in corpus.FREE_QA:
        with lzma.open(folder / "qa" / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    with zipfile.ZipFile(folder / "code" / "small.zip", "w") as archive:
        archive.writestr("small/a.py", "def one():\n    return 1\n")
    return folder


@pytest.fixture(scope="session")
def maker(data, tokenizer, tmp_path_factory) -> SampleMaker:
    books = BookTokens(data, "train", tokenizer, tmp_path_factory.mktemp("cache"))
    talks = [corpus.Question("What is a lamp?", "A thing that gives light.")]
    return SampleMaker(books, list(corpus.passages(data)), tokenizer, talks)
