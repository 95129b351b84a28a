"""Requests of OpenAI's protocol, checked. Fields that are not known are told once in the log and left alone."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.errors import ApiError, refused
from app.errors import ConfigError
from app.memory.config import GenerationConfig
from app.wellformed import parse_json

log = logging.getLogger(__name__)
T = TypeVar("T", bound="Body")
MOST_LIKELY = 20
LOG_PROBS = "message.output_text.logprobs"  # in `include` of responses
NO_TOOLS = "the loaded model calls no tools; leave it out, or set tool_choice to auto or none"
# What is common and changes nothing here: bookkeeping of the client, or hints that may be ignored.
IGNORED = {
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "reasoning_effort", "verbosity", "reasoning",
    "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "truncation", "background", "text",
    "tools", "tool_choice",
}  # fmt: skip


class Body(BaseModel):
    """What all ways of asking have in common; ours are documents, focus, mute, policy, through and return_progress."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str = ""
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    documents: list[str] = []
    focus: list[str] = []
    mute: list[str] = []
    policy: str = ""
    through: bool = False
    return_progress: bool = False

    @property
    def longest(self) -> int | None:
        """Most tokens of the answer."""
        raise NotImplementedError

    @property
    def stops(self) -> Sequence[str]:
        return ()

    @property
    def log_probs(self) -> int | None:
        """How many likely tokens are told beside each token of the answer; None: nothing of the kind."""
        return None

    def generation(self) -> GenerationConfig:
        """How the answer is sampled; greedy where the request does not say.

        Raises:
            ApiError: a value is out of range.
        """
        given = {
            "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed, "max_new_tokens": self.longest,
            "stop": tuple(self.stops) or None, "log_probs": self.log_probs,
        }  # fmt: skip
        try:
            return GenerationConfig(**{name: value for name, value in given.items() if value is not None})
        except ConfigError as error:
            raise ApiError(str(error)) from error

    def check(self) -> None:
        """Refuse what cannot be honoured, by name; tell what is left alone.

        Raises:
            ApiError: the first such field.
        """
        extra = self.model_extra or {}
        for name, reason in REFUSED.items():
            if extra.get(name):
                raise refused(name, extra[name], reason)
        if (extra.get("n") or 1) != 1 or (extra.get("best_of") or 1) != 1:
            raise refused("n", extra.get("n") or extra.get("best_of"), "one answer is given; ask again for another")
        form = _wanted_form(extra)
        if form != "text":
            raise refused("response_format", form, "answers are plain text; leave it out")
        choice = extra.get("tool_choice")
        if choice not in (None, "auto", "none"):
            raise refused("tool_choice", choice, NO_TOOLS)
        if extra.get("tools"):
            log.info("tools are left alone: the loaded model calls none")
        unknown = sorted(set(extra) - IGNORED - set(REFUSED) - {"n", "best_of", "response_format"})
        if unknown:
            log.info("fields that are not known are left alone: %.300s", ", ".join(map(repr, unknown)))


def _wanted_form(extra: Mapping[str, Any]) -> Any:
    """The form of the answer that a request names, in the way of chat completions or of responses."""
    text = extra.get("text")
    form = extra.get("response_format") or (text.get("format") if isinstance(text, Mapping) else text) or {}
    return form.get("type", "text") if isinstance(form, Mapping) else form


REFUSED = {
    "logit_bias": "not available; leave it out",
    "presence_penalty": "not available; leave it out or set it to 0",
    "frequency_penalty": "not available; leave it out or set it to 0",
    "audio": "answers are text",
    "prediction": "not available; leave it out",
    "web_search_options": "nothing leaves this machine, so nothing is searched there",
    "suffix": "text is not filled in between; leave it out",
    "conversation": "not available; send the turns in input",
    "previous_response_id": "not available; send the turns in input, only what is new is read",
}


class ChatBody(Body):
    """/v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream_options: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY)

    @property
    def log_probs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs or self.top_logprobs else None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or ()

    @property
    def wants_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionBody(Body):
    """/v1/completions: one prompt is one question."""

    prompt: str | list[str] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream_options: dict[str, Any] | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY)
    echo: bool = False

    @property
    def log_probs(self) -> int | None:
        return self.logprobs

    @property
    def longest(self) -> int | None:
        return self.max_tokens

    stops = ChatBody.stops
    wants_usage = ChatBody.wants_usage


class ResponseBody(Body):
    """/v1/responses."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELY)

    @property
    def log_probs(self) -> int | None:
        wanted = LOG_PROBS in (self.include or ()) or self.top_logprobs
        return (self.top_logprobs or 0) if wanted else None

    @property
    def longest(self) -> int | None:
        return self.max_output_tokens


def read(kind: type[T], value: Any) -> T:
    """A request of a kind, checked.

    Raises:
        ApiError: which field is wrong, and how.
    """
    try:
        body = kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or "body"
        raise ApiError(f"{name}: {first['msg']}", param=name) from error
    body.check()
    return body


async def read_json(request: Request, most_bytes: int) -> dict[str, Any]:
    """The body of a request, a JSON object.

    Raises:
        ApiError: it is too large, or no JSON object.
    """
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            raise ApiError(f"the request is larger than {most_bytes:,} bytes; upload the file first", status=413)
    try:
        value = parse_json(b"".join(parts))
    except ValueError as error:
        raise ApiError(f"the body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object")
    return value
