"""Files of other formats made on the spot."""

import importlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from format_maker import CONTAINER, itemref, page

from app.ingest import child


@pytest.fixture
def child_process() -> None:
    """A test that asks for this reads in a child process, as users do."""


@pytest.fixture(autouse=True)
def in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a process takes a second, so other tests read in their own."""

    def events(asked: dict[str, Any], cancelled: Callable[[], bool], what: str) -> Iterator[dict[str, Any]]:
        for event in (*importlib.import_module(asked["module"]).events(asked), {"end": True}):
            yield json.loads(json.dumps(event))

    if "child_process" not in request.fixturenames:
        monkeypatch.setattr(child, "events", events)


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """A function: members of a zip file to its path; the first is stored, as a media type has to be."""

    def pack(name: str, members: Mapping[str, str | bytes]) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as package:
            for i, (member, data) in enumerate(members.items()):
                package.writestr(member, data, zipfile.ZIP_STORED if i == 0 else zipfile.ZIP_DEFLATED)
        return tmp_path / name

    return pack


@pytest.fixture
def make_epub(pack) -> Callable[..., Path]:
    """A function: bodies of XHTML documents by name to the path of an EPUB; `opf` and `more` change or add members."""

    def make(
        pages: Mapping[str, str],
        *,
        nav: str | None = None,
        ncx: str | None = None,
        spine: Sequence[str] = (),
        more: Mapping[str, str | bytes] = {},
    ) -> Path:
        items = [f'<item id="{name}" href="{name}" media-type="application/xhtml+xml"/>' for name in pages]
        refs = [itemref(name) for name in spine or pages]
        members: dict[str, str | bytes] = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER}
        if nav is not None:
            items.append('<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>')
            members["OPS/nav.xhtml"] = page(nav)
        if ncx is not None:
            items.append('<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>')
            members["OPS/toc.ncx"] = f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/">{ncx}</ncx>'
        members["OPS/book.opf"] = (
            '<package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
            '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Made Book</dc:title></metadata>'
            f"<manifest>{''.join(reversed(items))}</manifest><spine>{'<!-- a comment -->'.join(refs)}</spine></package>"
        )
        members |= {f"OPS/{name}": body if body.startswith("<?xml") else page(body) for name, body in pages.items()}
        return pack("made.epub", {**members, **more})

    return make
