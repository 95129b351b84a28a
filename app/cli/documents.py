"""Commands about documents: read, text, documents."""

import argparse
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.session import Session, freed_text
from app.errors import InputError
from app.ingest.stream import Watch, in_steps
from app.records import Document, DocumentInfo
from app.system import duration, peak_bytes, size_text

if TYPE_CHECKING:
    from app.chat import DocumentChat


def read(session: Session, args: argparse.Namespace) -> int:
    """Read documents, so that questions cost only their own tokens; one that cannot be read does not keep the others.

    Returns:
        The exit code: 1 when one of them could not be read.
    """
    if args.ray:
        return _read_over_ray(session, args)
    started = time.perf_counter()
    read_now = reused = 0
    documents: list[DocumentInfo] = []
    failed: dict[str, str] = {}
    with session.chat() as chat:
        for path in args.paths:
            try:
                info, tokens_reused = _read_one(session, chat, path, args)
            except InputError as error:
                if len(args.paths) == 1:
                    raise
                failed[str(path)] = str(error)
                session.out.say(str(error))
                continue
            documents.append(info)
            reused += tokens_reused
            read_now += info.tokens - tokens_reused
        disk_bytes = sum(chat.library.disk_space().documents.get(info.id, 0) for info in documents)
    ids = [info.id for info in documents]
    seconds = time.perf_counter() - started
    values = {
        "document": ids[0] if len(ids) == 1 else ids,
        "tokens": sum(info.tokens for info in documents),
        "tokens_read": read_now,
        "tokens_reused": reused,
        "disk_bytes": disk_bytes,
        "seconds": round(seconds, 3),
        "peak_bytes": peak_bytes(),
    }
    if failed:
        values |= {"failed": failed, "error": "; ".join(failed.values())}
    lines = [f"{info.id}  {info.title}: {info.tokens:,} tokens" for info in documents]
    lines.append(f"{read_now:,} tokens read, {reused:,} reused, {size_text(disk_bytes)} on disk, {duration(seconds)}")
    lines += [f"{len(failed)} of {len(args.paths)} could not be read"] if failed else []
    session.out.result(values, "\n".join(lines))
    return 1 if failed else 0


def _read_over_ray(session: Session, args: argparse.Namespace) -> int:
    """Read all files of folders over Ray's workers, then take them into the library; what is done stays done."""
    from app.cluster import read_many
    from app.cluster.connect import cluster

    started = time.perf_counter()
    paths = [path for folder in args.paths for path in read_many.files(folder)]
    with session.chat() as chat:
        bundles = chat.settings.folder / read_many.BUNDLES
        bundles.mkdir(parents=True, exist_ok=True, mode=0o700)
        left = read_many.left(paths, bundles, session.model_ready(chat).recipe)
        session.out.say(f"{len(left)} of {len(paths)} files to read")
        done: list[read_many.Outcome] = []
        if left:
            with cluster(chat.settings.folder, args.cluster), read_many.scratch(chat.settings.folder):
                for outcome in read_many.read_all(chat.settings, left, bundles, args.workers):
                    done.append(outcome)
                    what = outcome.error or f"{outcome.tokens:,} tokens, {duration(outcome.seconds)}"
                    session.out.say(f"{len(done)} of {len(left)}: {Path(outcome.path).name}: {what}")
        failed = {outcome.path: outcome.error for outcome in done if outcome.error}
        whole = {bundle for path in paths if (bundle := bundles / read_many.bundle_name(path)).exists()}
        for bundle in sorted(whole):
            read_many.collect(chat, bundle)
    seconds, tokens = time.perf_counter() - started, sum(outcome.tokens for outcome in done)
    values = {
        "files": len(paths), "read": len(done) - len(failed), "documents": len(whole), "tokens_read": tokens,
        "workers": len({outcome.worker for outcome in done}), "seconds": round(seconds, 3),
    }  # fmt: skip
    if failed:
        values |= {"failed": failed, "error": f"{len(failed)} of {len(paths)} files could not be read"}
    session.out.result(values, f"{len(whole)} documents, {tokens:,} tokens read, {duration(seconds)}")
    return 1 if failed else 0


def _read_one(session: Session, chat: "DocumentChat", path: Path, args: argparse.Namespace) -> tuple[DocumentInfo, int]:
    """Add and read one document; returns it and how many of its tokens were read before."""
    info = session.adding(path, chat.library.adding(path, password=args.password, encoding=args.encoding, ocr=args.ocr))
    for note in info.notes:
        session.out.say(f"{info.title}: {note}")
    for skipped in info.skipped:
        session.out.say(f"{info.title}: left out {skipped.name}: {skipped.reason}")
    session.model_ready(chat)
    reused, told = 0, False
    with closing(chat.read(info.id)) as readings:
        for reading in readings:
            reused = reading.reused
            if not told and reading.tokens_total > reused:
                taken = size_text((reading.tokens_total - reused) * chat.library.token_bytes())
                session.out.say(
                    f"{info.title}: {reading.tokens_total - reused:,} tokens to read, about {taken} on disk"
                )
            told = True
            session.reading(reading)
    return chat.library.document(info.id), reused


def text(session: Session, args: argparse.Namespace) -> None:
    """Show what ingestion makes of a file; nothing is stored and no model is loaded."""
    from app.ingest.load import load_document

    with tempfile.TemporaryDirectory() as folder:

        def load(watch: Watch) -> Document:
            options = {"password": args.password, "encoding": args.encoding}
            options["ocr_folder"] = Path(folder) if args.ocr else None
            tell = watch.progress("opening it")
            return load_document(args.path, progress=tell, cancelled=watch.cancelled, **options)

        document = session.adding(args.path, in_steps(load))
    for note in document.notes:
        session.out.say(note)
    for skipped in document.skipped:
        session.out.say(f"left out {skipped.name}: {skipped.reason}")
    parts = [{"index": part.index, "label": part.label, "text": part.text} for part in document.parts]
    session.out.result({"parts": parts}, "\n\n".join(f"== {part.label}\n{part.text}" for part in document.parts))


def documents_list(session: Session, args: argparse.Namespace) -> None:
    """List the library."""
    from app.eval.report import table

    with session.chat(load=False) as chat:
        documents = chat.library.documents()
    rows = [[d.id, d.title, d.kind, d.parts, d.tokens, _state(d)] for d in documents]
    text = table(["id", "title", "kind", "parts", "tokens", "state"], rows) if rows else "No documents yet."
    session.out.result({"documents": [asdict(d) for d in documents]}, text)


def _state(document: DocumentInfo) -> str:
    return "partly read" if document.state == "read" and document.mostly_unread else document.state


def documents_show(session: Session, args: argparse.Namespace) -> None:
    """Show one document."""
    with session.chat(load=False) as chat:
        document = chat.library.document(args.id)
        covered = chat.library.coverage(document.id)
    lines = [f"{name}: {value}" for name, value in asdict(document).items() if name not in ("notes", "skipped")]
    lines += [f"note: {note}" for note in document.notes]
    lines += [f"left out: {skipped.name}: {skipped.reason}" for skipped in document.skipped]
    lines.append(f"read: {covered.read:.0%}")
    session.out.result(asdict(document) | {"coverage": covered.as_dict()}, "\n".join(lines))


def documents_delete(session: Session, args: argparse.Namespace) -> None:
    """Delete a document and the memory of it."""
    session.delete(args.id, lambda chat: (chat.library.document, chat.library.delete_document))


def documents_pin(session: Session, args: argparse.Namespace) -> None:
    """Keep the memory of a document whatever the disk budget says."""
    _pin(session, args.id, True)


def documents_unpin(session: Session, args: argparse.Namespace) -> None:
    """Let the memory of a document go when the disk budget asks for it."""
    _pin(session, args.id, False)


def _pin(session: Session, id: str, pinned: bool) -> None:
    with session.chat(load=False) as chat:
        info = chat.library.pin(id, pinned)
    session.out.result(
        {"document": info.id, "pinned": pinned}, f"{info.title}: {'' if pinned else 'no longer '}pinned."
    )


def documents_evict(session: Session, args: argparse.Namespace) -> None:
    """Delete the memory of a document; its text stays."""
    with session.chat(load=False) as chat, session.freeing(chat) as freed:
        info = chat.library.evict(args.id)
    text = f"{info.title}: its memory is deleted, {freed_text(freed)}; it is read again when asked about."
    session.out.result({"evicted": info.id, **freed}, text)


def documents_search(session: Session, args: argparse.Namespace) -> None:
    """Find words in the text of the library."""
    with session.chat(load=False) as chat:
        document = chat.library.document(args.document).id if args.document else None
        found = chat.store.search_parts(" ".join(args.words), args.limit, document)
        titles = {info.id: info.title for info in chat.library.documents()}
    rows = [dict(zip(("document", "part", "label", "snippet"), row, strict=True)) for row in found]
    lines = [f"{titles.get(d, d)}, {label}: {' '.join(snippet.split())}" for d, _, label, snippet in found]
    session.out.result({"found": rows}, "\n".join(lines) or "Not found.")
