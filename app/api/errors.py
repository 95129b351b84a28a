"""Errors in the shape that OpenAI's clients expect."""

from typing import Any

from fastapi.responses import JSONResponse

from app.errors import (
    CancelledError,
    InUseError,
    LecternError,
    LimitError,
    ModelError,
    NotFoundError,
    StoreError,
    refusal,
)

MOST_WAIT_S = 120  # clients that honour Retry-After give up at once beyond it


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        param: field of the request that is meant.
        retry_after_s: when to ask again; None where that is no use.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after_s = None if retry_after_s is None else max(1, min(retry_after_s, MOST_WAIT_S))

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return JSONResponse(self.body, self.status, headers=headers)


def refused(name: str, value: Any, reason: str) -> ApiError:
    """A field that cannot be honoured: name, value and what to do."""
    text = repr(value)
    return ApiError(f"{name} = {text if len(text) <= 60 else text[:57] + '...'}: {reason}", param=name)


def told(error: Exception) -> ApiError | None:
    """What a client is told of an error of ours; None for one that nobody foresaw."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LimitError):
        code = "insufficient_quota" if error.wait_s is None else "rate_limit_exceeded"
        return ApiError(str(error), status=429, code=code, retry_after_s=error.wait_s)
    if isinstance(error, InUseError):
        return ApiError(str(error), status=503, code="busy", retry_after_s=2)
    if isinstance(error, NotFoundError):
        return ApiError(str(error), status=404, code="not_found")
    if isinstance(error, StoreError | ModelError):
        return ApiError(str(error), status=503, code="unavailable", retry_after_s=30)
    if isinstance(error, CancelledError):
        return ApiError(f"{error}; ask again to go on from there", status=503, code="stopped", retry_after_s=1)
    if isinstance(error, LecternError):
        return ApiError(str(error))
    words = refusal(error)
    return ApiError(words, status=503, code="unavailable") if words else None
