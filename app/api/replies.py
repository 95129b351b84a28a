"""Answers in the shapes of OpenAI's three protocols, whole and as server-sent events."""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from app.records import Delta, Done, Evidence, Reading

Event = Reading | Delta | Done
FINISH = {"length": "length", "repetition": "length"}
QUOTE_CHARS = 300


@dataclass(frozen=True)
class Head:
    """What every part of one reply repeats.

    Attributes:
        model: as the request named it.
    """

    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))


class Reply(Protocol):
    """One of the three shapes."""

    def whole(self, done: Done) -> dict[str, Any]: ...

    def stream(self, events: Iterator[Event]) -> Iterator[str]: ...

    def broken(self, body: dict[str, Any]) -> str: ...


def sse(value: dict[str, Any] | str, event: str = "") -> str:
    """One server-sent event."""
    data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return (f"event: {event}\n" if event else "") + f"data: {data}\n\n"


def usage(done: Done) -> dict[str, Any]:
    """Tokens of the prompt, those from memory among them, and of the answer."""
    stats = done.stats
    prompt = stats.tokens_read + stats.tokens_reused
    return {
        "prompt_tokens": prompt,
        "completion_tokens": stats.new_tokens,
        "total_tokens": prompt + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.tokens_reused},
    }


def citation(item: Evidence) -> dict[str, Any]:
    """Where a passage stands: the file, and its page or path with lines; how sure OCR is, where it read it."""
    sure = {} if item.confidence is None else {"ocr_confidence": round(item.confidence, 4)}
    return sure | {
        "file_id": f"file-{item.document}",
        "filename": item.title,
        "label": item.label,
        "quote": item.text if len(item.text) <= QUOTE_CHARS else item.text[: QUOTE_CHARS - 1] + "…",
        "evidence": item.id,
    }


def annotations(done: Done) -> list[dict[str, Any]]:
    """Passages as annotations of a message: what OpenAI's form has there, which some clients check, and the rest."""
    first = _first_places(done)
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": f"lectern://{item.document}/{item.part}",
                "title": f"{item.title}, {item.label}",
                "start_index": first.get(number, 0),
                "end_index": first.get(number, len(done.answer)),
            },
            "file_citation": citation(item),
        }
        for number, item in enumerate(done.evidence, start=1)
    ]


def _first_places(done: Done) -> dict[int, int]:
    """Where the text cites a passage first, by its number."""
    return {number: place for place, number in reversed(done.stats.cited)}


def log_probs(done: Done) -> list[dict[str, Any]] | None:
    """Each token of the answer with its log-probability and the likeliest in its place; None where nobody asked."""
    return [
        {**_scored(s.text, s.log_prob), "top_logprobs": [_scored(*o) for o in s.others]} for s in done.scored
    ] or None


def _scored(text: str, log_prob: float) -> dict[str, Any]:
    return {"token": text, "logprob": round(log_prob, 6), "bytes": list(text.encode())}


def progress(event: Reading) -> dict[str, Any]:
    """How far reading is, by llama.cpp's names."""
    return {"total": event.tokens_total, "cache": event.tokens_reused, "processed": event.tokens_done}


class ChatReply:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, head: Head, *, with_usage: bool = False, with_progress: bool = False) -> None:
        self.head, self.with_usage, self.with_progress = head, with_usage, with_progress

    def whole(self, done: Done) -> dict[str, Any]:
        message = {"role": "assistant", "content": done.answer, "refusal": None, "annotations": annotations(done)}
        choice = {"index": 0, "message": message, "logprobs": _content(done), "finish_reason": _finish(done)}
        return {**self._base("chat.completion"), "choices": [choice], "usage": usage(done), "lectern": _ours(done)}

    def stream(self, events: Iterator[Event]) -> Iterator[str]:
        yield self._chunk({"role": "assistant", "content": ""})
        for event in events:
            if isinstance(event, Delta):
                yield self._chunk({"content": event.text})
            elif isinstance(event, Reading):
                if self.with_progress:
                    base = self._base("chat.completion.chunk")
                    yield sse({**base, "choices": [], "prompt_progress": progress(event)})
            else:
                yield self._last(event)
        yield sse("[DONE]")

    def broken(self, body: dict[str, Any]) -> str:
        return sse(body)

    def _last(self, done: Done) -> str:
        """The finish, with the usage in a chunk of its own where the client asks for it, else beside it: once."""
        last = self._base("chat.completion.chunk")
        delta = {"annotations": annotations(done)} if done.evidence else {}
        last["choices"] = [{"index": 0, "delta": delta, "logprobs": _content(done), "finish_reason": _finish(done)}]
        last["lectern"] = _ours(done)
        if not self.with_usage:
            return sse({**last, "usage": usage(done)})
        return sse(last) + sse({**self._base("chat.completion.chunk"), "choices": [], "usage": usage(done)})

    def _chunk(self, delta: dict[str, Any]) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return sse({**self._base("chat.completion.chunk"), "choices": [choice]})

    def _base(self, kind: str) -> dict[str, Any]:
        head = self.head
        return {"id": f"chatcmpl-{head.id}", "object": kind, "created": head.created, "model": head.model}


def _content(done: Done) -> dict[str, Any] | None:
    found = log_probs(done)
    return found and {"content": found, "refusal": None}


def _columns(done: Done, start: int) -> dict[str, Any] | None:
    """The same as completions have it: a list for each property. `start`: where the answer begins in the text."""
    if not done.scored:
        return None
    ends = list(accumulate((len(s.text) for s in done.scored), initial=start))
    return {
        "tokens": [s.text for s in done.scored],
        "token_logprobs": [round(s.log_prob, 6) for s in done.scored],
        "top_logprobs": [{text: round(value, 6) for text, value in s.others} for s in done.scored],
        "text_offset": ends[:-1],
    }


class CompletionReply(ChatReply):
    """text_completion, whole and in chunks."""

    def __init__(self, head: Head, *, with_usage: bool = False, echo: str = "") -> None:
        super().__init__(head, with_usage=with_usage)
        self.echo = echo

    def whole(self, done: Done) -> dict[str, Any]:
        choice = {"index": 0, "text": self.echo + done.answer, "finish_reason": _finish(done)}
        choice["logprobs"] = _columns(done, len(self.echo))
        return {**self._base(""), "choices": [choice], "usage": usage(done), "lectern": _ours(done)}

    def stream(self, events: Iterator[Event]) -> Iterator[str]:
        if self.echo:
            yield self._chunk({"content": self.echo})
        for event in events:
            if isinstance(event, Delta):
                yield self._chunk({"content": event.text})
            elif isinstance(event, Done):
                columns = _columns(event, len(self.echo))
                choice = {"index": 0, "text": "", "logprobs": columns, "finish_reason": _finish(event)}
                last = {**self._base(""), "choices": [choice]}
                if not self.with_usage:
                    yield sse({**last, "usage": usage(event)})
                else:
                    yield sse(last) + sse({**self._base(""), "choices": [], "usage": usage(event)})
        yield sse("[DONE]")

    def _chunk(self, delta: dict[str, Any]) -> str:
        choice = {"index": 0, "text": delta["content"], "logprobs": None, "finish_reason": None}
        return sse({**self._base(""), "choices": [choice]})

    def _base(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self.head.id}", "object": "text_completion", "created": self.head.created,
            "model": self.head.model,
        }  # fmt: skip


class ResponseReply:
    """response objects and their events."""

    def __init__(self, head: Head, *, instructions: str | None = None) -> None:
        self.head, self.instructions = head, instructions
        self._number = 0

    def whole(self, done: Done) -> dict[str, Any]:
        cut = _finish(done) == "length"
        return self._response(
            "incomplete" if cut else "completed",
            output=[self._message(_part(done.answer, _places(done), log_probs(done)), "completed")],
            usage=_response_usage(done),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            lectern=_ours(done),
        )

    def stream(self, events: Iterator[Event]) -> Iterator[str]:
        begun = self._response("in_progress", output=[], usage=None)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        empty = self._message(_part("", []), "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=empty)
        at = {"item_id": self._item, "output_index": 0, "content_index": 0}
        yield self._event("response.content_part.added", **at, part=_part("", []))
        for event in events:
            if isinstance(event, Delta):
                yield self._event("response.output_text.delta", **at, delta=event.text, logprobs=[])
            elif isinstance(event, Done):
                yield from self._end(event, at)

    def broken(self, body: dict[str, Any]) -> str:
        error = body["error"]
        failed = self._response("failed", output=[], usage=None)
        failed["error"] = {"code": error["code"] or "server_error", "message": error["message"]}
        return self._event("response.failed", response=failed)

    def _end(self, done: Done, at: dict[str, Any]) -> Iterator[str]:
        found, whole = _places(done), self.whole(done)
        yield self._event("response.output_text.done", **at, text=done.answer, logprobs=log_probs(done) or [])
        for number, item in enumerate(found):
            yield self._event("response.output_text.annotation.added", **at, annotation_index=number, annotation=item)
        yield self._event("response.content_part.done", **at, part=whole["output"][0]["content"][0])
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        kind = "response.completed" if whole["status"] == "completed" else "response.incomplete"
        yield self._event(kind, response=whole)

    @property
    def _item(self) -> str:
        return f"msg_{self.head.id}"

    def _message(self, part: dict[str, Any], status: str) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": [part]}

    def _response(self, status: str, **values: Any) -> dict[str, Any]:
        return {
            "id": f"resp_{self.head.id}", "object": "response", "created_at": self.head.created, "status": status,
            "model": self.head.model, "error": None, "incomplete_details": None, "instructions": self.instructions,
            "previous_response_id": None, "parallel_tool_calls": False, "tool_choice": "none", "tools": [],
            "temperature": None, "top_p": None, "metadata": {}, **values,
        }  # fmt: skip

    def _event(self, kind: str, **values: Any) -> str:
        event = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return sse(event, kind)


def _part(text: str, found: list[dict[str, Any]], scored: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": found, "logprobs": scored or []}


def _places(done: Done) -> list[dict[str, Any]]:
    """Passages as annotations of a response: each where the text cites it first, else for the whole answer."""
    first = _first_places(done)
    return [
        {"type": "file_citation", "index": first.get(number, len(done.answer)), **citation(item)}
        for number, item in enumerate(done.evidence, start=1)
    ]


def _response_usage(done: Done) -> dict[str, Any]:
    plain = usage(done)
    return {
        "input_tokens": plain["prompt_tokens"],
        "input_tokens_details": plain["prompt_tokens_details"],
        "output_tokens": plain["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": plain["total_tokens"],
    }


def _finish(done: Done) -> str:
    return FINISH.get(done.stats.ended, "stop")


def _ours(done: Done) -> dict[str, Any]:
    """What OpenAI's shape has no place for."""
    stats = done.stats
    knows = {name: getattr(stats, name) for name in ("source", "on_documents", "on_chat", "on_question", "held")}
    return {"chat": done.chat, "note": stats.note, "policy": stats.policy, "knows": knows}
