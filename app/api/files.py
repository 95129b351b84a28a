"""/v1/files: a file is a document of the library, read in the background; its status tells how far that is."""

import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from app.api.errors import ApiError
from app.api.reading import BackgroundReading
from app.api.schema import read_json
from app.records import DocumentInfo
from app.wellformed import file_name

if TYPE_CHECKING:
    from app.chat import DocumentChat

Share = Callable[["DocumentChat", str, str], None]  # (chat, document, name of the user)
PREFIX = "file-"
MOST_NAME_BYTES = 1000
CHUNK_BYTES = 1 << 20
MOST_BYTES = 512_000_000


class FileRoutes:
    """Handlers of /v1/files."""

    def __init__(self, chat: "DocumentChat", reading: BackgroundReading, share: Share | None) -> None:
        self.chat, self.reading, self._share = chat, reading, share

    def routes(self) -> list[tuple[str, str, Callable[[Request], Any]]]:
        """(path, method, handler) of each."""
        return [
            ("/files", "POST", self.upload),
            ("/files", "GET", self.list),
            ("/files/{id}", "GET", self.show),
            ("/files/{id}", "DELETE", self.delete),
            ("/files/{id}/share", "POST", self.share),
        ]

    async def upload(self, request: Request) -> Response:
        """Add the file to the library and read it when the model is free. The same bytes again change nothing."""
        async with request.form(max_files=1, max_fields=20) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError("file: is missing; send it as multipart/form-data", param="file")
            with tempfile.TemporaryDirectory(prefix="lectern-") as folder:
                path = Path(folder) / file_name(file.filename or "")
                await _copy(file, path)
                info = await run_in_threadpool(self._add, path)
            purpose = str(form.get("purpose") or "assistants")
        return JSONResponse(self._described(info, purpose))

    def _add(self, path: Path) -> DocumentInfo:
        info = self.chat.library.add_document(path, name=path.name)
        if info.state != "read":
            self.reading.add(info.id)
        return info

    async def list(self, request: Request) -> Response:
        found = await run_in_threadpool(lambda: [self._described(info) for info in self.chat.library.documents()])
        return JSONResponse({"object": "list", "data": found, "has_more": False})

    async def show(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(lambda: self._described(self._document(request))))

    async def delete(self, request: Request) -> Response:
        """Forget a document and its memory, as the page does."""
        info = await run_in_threadpool(self._document, request)
        self.reading.forget(info.id)
        with self.reading.hold():
            await run_in_threadpool(self.chat.library.delete_document, info.id)
        return JSONResponse({"id": PREFIX + info.id, "object": "file", "deleted": True})

    async def share(self, request: Request) -> Response:
        """Give another user a copy of a document, with its memory: they can neither change nor follow this one."""
        body = await read_json(request, MOST_NAME_BYTES)
        if self._share is None or not isinstance(name := body.get("user"), str):
            raise ApiError('user: is missing; send {"user": NAME}', param="user")
        info = await run_in_threadpool(self._document, request)
        await run_in_threadpool(self._share, self.chat, info.id, name)
        return JSONResponse({"id": PREFIX + info.id, "object": "file", "shared_with": name})

    def _document(self, request: Request) -> DocumentInfo:
        return self.chat.library.document(request.path_params["id"].removeprefix(PREFIX))

    def _described(self, info: DocumentInfo, purpose: str = "assistants") -> dict[str, Any]:
        problem = self.reading.problems.get(info.id) or (info.detail if info.state == "failed" else "")
        waits = self.reading.waits(info.id)
        return {
            "id": PREFIX + info.id,
            "object": "file",
            "bytes": sum(len(part.text.encode()) for part in self.chat.store.parts(info.id)),
            "created_at": _moment(info.created),
            "filename": info.title,
            "purpose": purpose,
            "status": "processed" if info.state == "read" else "error" if problem else "uploaded",
            "status_details": problem or ("being read" if waits else None if info.state == "read" else "not read yet"),
            "lectern": {"tokens": info.tokens, "parts": info.parts, "notes": list(info.notes)},
        }


async def _copy(file: UploadFile, path: Path) -> None:
    size = 0
    with path.open("wb") as out:
        while part := await file.read(CHUNK_BYTES):
            size += len(part)
            if size > MOST_BYTES:
                raise ApiError(f"file: is larger than {MOST_BYTES:,} bytes; split it", status=413, param="file")
            out.write(part)


def _moment(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return int(time.time())
