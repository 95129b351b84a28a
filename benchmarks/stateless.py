"""A program that sends the whole talk each time: tokens read against tokens sent, over a document of 100,000 tokens.

    python benchmarks/stateless.py

Ten turns through /v1/chat/completions, then one after an early turn was changed. What is sent counts with the document,
as a program without memory would have to send it. The exit code is 1 where more than LIMIT of it is read after the
first turn, or where a turn names another chat than the one before it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastapi import FastAPI
from fastapi.testclient import TestClient

from app import system
from app.api.routes import Endpoint
from app.chat import DocumentChat
from app.eval import report
from app.settings import SMALL_MODEL, Settings
from benchmarks import machine

BOOK = machine.ROOT / "tests" / "data" / "book.txt"
LIMIT = 0.02
ANSWER_TOKENS = 24
QUESTIONS = (
    "Who is the story about?", "Where does it begin?", "What is said of the sea?", "Who comes first?",
    "What does the letter say?", "Who goes away?", "What is found?", "Which house is meant?", "Who is afraid?",
    "How does it end?",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the document, at least (100,000)")
    parser.add_argument("--turns", type=int, default=len(QUESTIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=machine.ROOT / "benchmarks" / "results" / "stateless.json")
    args = parser.parse_args()
    system.keep_private()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder) / "home", model=args.model, threads=args.threads)
        chat = DocumentChat.open(settings)
        try:
            rows = talk(chat, args.tokens, args.turns)
        finally:
            chat.close()
    names = list(rows[0])
    print(report.table(names, [[row[name] for name in names] for row in rows]))
    result = summary(rows) | machine.describe()
    print(json.dumps({name: result[name] for name in ("document_tokens", "share", "chats", "right")}))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["right"] else 1


def talk(chat: DocumentChat, tokens: int, turns: int) -> list[dict[str, Any]]:
    """The turns, each with the tokens of its prompt and those of them that were read."""
    chat.model.engine()
    endpoint, app = Endpoint(chat), FastAPI()
    app.include_router(endpoint.router())
    with TestClient(app) as client:
        file = client.post("/v1/files", files={"file": ("book.txt", _text(chat, tokens))}).json()
        messages: list[dict[str, str]] = []
        rows = []
        for number in range(turns):
            messages.append({"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]})
            rows.append(_ask(client, f"turn {number + 1}", messages, file["id"]))
            messages.append({"role": "assistant", "content": rows[-1].pop("answer")})
        messages[1]["content"] = "Somebody else."
        messages.append({"role": "user", "content": "And then?"})
        rows.append(_ask(client, "an early turn changed", messages, file["id"]))
        rows[-1].pop("answer")
    endpoint.reading.close()
    return rows


def _ask(client: TestClient, turn: str, messages: list[dict[str, str]], file: str) -> dict[str, Any]:
    body = {"model": "lectern", "messages": messages, "documents": [file], "max_tokens": ANSWER_TOKENS}
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    reply = answer.json()
    sent = reply["usage"]["prompt_tokens"]
    read = sent - reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    text = reply["choices"][0]["message"]["content"] or "-"
    return {"turn": turn, "sent": sent, "read": read, "chat": reply["lectern"]["chat"], "answer": text}


def _text(chat: DocumentChat, tokens: int) -> bytes:
    """A text of at least so many tokens: the book, then the same with its lines counted."""
    book = BOOK.read_text(encoding="utf-8")
    size, text, turn = len(chat.model.engine().text_tokenizer.encode(book).ids), book, 1
    while size * turn < tokens:
        text += "".join(f"{turn}.{n} {line}\n" for n, line in enumerate(book.splitlines()) if line)
        turn += 1
    return text.encode()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of the sent tokens that was read after the first turn."""
    later = rows[1:-1]
    share = sum(row["read"] for row in later) / max(1, sum(row["sent"] for row in later))
    chats = len({row["chat"] for row in rows[:-1]})
    return {
        "benchmark": "stateless", "document_tokens": rows[0]["sent"], "turns": rows, "share": round(share, 5),
        "limit": LIMIT, "chats": chats, "right": share <= LIMIT and chats == 1,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
