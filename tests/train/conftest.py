"""A data folder in the layout of the real one: two books, a question set of each name, one code file."""

import gc
import json
import lzma
import zipfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from app.train.cli import sample_maker
from app.train.pretrain import corpus
from app.train.pretrain.data import TASKS, SampleMaker

ROOT = Path(__file__).resolve().parents[2]
FROZEN = ROOT / "models" / "lectern-small"


@pytest.fixture(scope="session", autouse=True)
def quick_collection():
    """Every start of a Trainer collects garbage, among all that the libraries made at import."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def write_lines(path: Path, entries: list[dict]) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


@pytest.fixture(scope="session")
def tokenizer():
    """The shipped one."""
    return AutoTokenizer.from_pretrained(FROZEN)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("books", "qa", "code", "instruct"):
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
    for name in (*corpus.FREE_QA, "pubmedqa_train"):
        write_lines(folder / "qa" / f"{name}.jsonl.xz", [entry])
    unseen = {"text": "Bo keeps a brown dog.", "qas": [{"question": "What does Bo keep?", "answers": ["a brown dog"]}]}
    write_lines(folder / "qa" / "fairytaleqa_valid.jsonl.xz", [unseen])
    asked = {"question": "Where is Mary?", "answers": ["kitchen"], "after_line": 1}
    world = {"lines": ["1 Mary went to the kitchen.", "2 Mary went home."], "qas": [asked]}
    write_lines(folder / "qa" / "babi_en10k_train.jsonl.xz", [world])
    told = {"instruction": "What is a lamp?", "input": "", "output": "A thing that gives light."}
    write_lines(folder / "instruct" / "dolly_3k.jsonl.xz", [told])
    with zipfile.ZipFile(folder / "code" / "small.zip", "w") as archive:
        archive.writestr("small/a.py", "def one():\n    return 1\n")
    return folder


@pytest.fixture(scope="session")
def maker(data, tokenizer, tmp_path_factory) -> SampleMaker:
    return sample_maker(data, "train", tokenizer, tmp_path_factory.mktemp("cache"), TASKS)
