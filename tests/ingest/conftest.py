"""Small documents made on the spot."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pypdf
import pytest
from pdf_maker import drawn, page_objects, pdf_bytes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The documents that are committed with the tests."""
    return DATA


@pytest.fixture
def make_pdf(tmp_path: Path) -> Callable[..., Path]:
    """A function: page texts to the path of a PDF; `change` may edit it as a pypdf writer first."""

    def make(pages: Sequence[str], name: str = "made.pdf", change: Callable[[pypdf.PdfWriter], object] | None = None):
        path = tmp_path / name
        made = pdf_bytes(page_objects([drawn(text) for text in pages]))
        if change is None:
            path.write_bytes(made)
        else:
            writer = pypdf.PdfWriter(clone_from=io.BytesIO(made))
            change(writer)
            writer.write(path)
        return path

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE with a few hundred merges and one marker, reading markers as text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(DATA / "book.txt").read_text(encoding="utf-8")[:100_000]], trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer
