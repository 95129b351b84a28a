"""Documents as they are attached to a chat, without a model."""

from collections.abc import Sequence

from app.chat.evidence import Attached
from app.ingest import spans
from app.records import DocumentInfo, DocumentKind, Part
from tests import tiny

SIZE = 8


def attach(
    texts: Sequence[str],
    labels: Sequence[str] = (),
    *,
    chapters: Sequence[str] = (),
    kind: DocumentKind = "pdf",
    title: str = "Book",
    first: int = 0,
):
    """One memory over parts, with a tokenizer of one token per byte: (parts, memory, tokenizer)."""
    tokenizer = tiny.byte_tokenizer().backend_tokenizer
    tokenizer.encode_special_tokens = True
    names = labels or [str(i) for i in range(1, len(texts) + 1)]
    line = 1 if kind == "code" else None
    parts = [
        Part(i, name, text, chapters[i - 1] if chapters else None, first_line=line)
        for i, (name, text) in enumerate(zip(names, texts, strict=True), start=1)
    ]
    (text,) = spans.encode(parts, tokenizer, 1)
    info = DocumentInfo("d" + title, title, kind, len(parts), len(text.token_ids), "read", "", "")
    return parts, Attached(info, 0, text, first, -(-len(text.token_ids) // SIZE)), tokenizer
