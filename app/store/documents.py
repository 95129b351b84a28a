"""Documents in library.db: their parts and search, the memories made of them, and where reading stands."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlite_utils import Database

from app.errors import CancelledError, NotFoundError, StoreError
from app.records import Box, Document, DocumentInfo, DocumentState, MemoryText, Part, Skipped, Span
from app.store.database import SqliteFile
from app.store.text import match, now, pack, unpack
from app.wellformed import one_line, whole

ID_DIGITS = 12
SNIPPET_WORDS = 24
IMPORTED = "came with a chat: its text is what that file says, until you add the document's own file"

_INFO = """
    SELECT d.id, d.title, d.kind, (SELECT COUNT(*) FROM part p WHERE p.document = d.id),
           (SELECT COALESCE(SUM(m.tokens), 0) FROM memory m WHERE m.document = d.id AND m.recipe = :recipe),
           COALESCE(r.state, 'new'), COALESCE(r.detail, ''), d.created, d.imported IS NOT NULL, d.notes, d.skipped
    FROM document d LEFT JOIN reading r ON r.document = d.id AND r.recipe = :recipe
"""
_PART_COLUMNS = "number, label, text, chapter, memory, first_line, kind, places, boxes"
_PART = f"SELECT {_PART_COLUMNS} FROM part"


class Documents:
    """The document half of the library. `id` is a whole document id unless a method says otherwise."""

    def __init__(self, library: SqliteFile) -> None:
        self._library = library

    def add_document(
        self, document: Document, cancelled: Callable[[], bool] = lambda: False, *, replace: bool = False
    ) -> str:
        """Keep a document and return its id, which comes from its bytes; one that is there already stays as it is.

        One that came with a chat and holds the same is no longer marked; what was read of it is read again.

        Args:
            replace: exchange one that is there, if the text of a part differs.

        Raises:
            CancelledError: `cancelled`, asked before each part, said so; nothing is kept.
        """
        with self._library.write() as db:
            known = db.execute("SELECT id FROM document WHERE sha256 = ?", [document.sha256]).fetchone()
            if known and replace and _texts(db, known[0]) != [whole(part.text) for part in document.parts]:
                db.execute("DELETE FROM document WHERE id = ?", [known[0]])
                known = None
            if known:
                return known[0]
            if known := self._imported(db, document):
                _confirm(db, known, document)
                return known
            return _insert(db, document, document.sha256, None, cancelled)

    def add_imported(self, document: Document) -> str:
        """Keep a document that came with a chat; returns its id here.

        Nobody has seen its file, so it is known by what it holds and not by the SHA-256 that it claims, and it is
        marked until its file is added. One that was made from that file and holds the same serves instead.
        """
        digest = contents(document)
        with self._library.write() as db:
            known = db.execute("SELECT id FROM document WHERE sha256 = ?", [document.sha256]).fetchone()
            if known and self.parts(known[0]) == list(document.parts):
                return known[0]
            return self._imported(db, document) or _insert(db, document, digest, digest)

    def _imported(self, db: Database, document: Document) -> str | None:
        """The id of a marked document that holds the same."""
        marked = db.execute("SELECT imported, id FROM document WHERE imported IS NOT NULL").fetchall()
        return dict(marked).get(contents(document)) if marked else None

    def root(self, id: str, recipe: str) -> str:
        """What the keys of a document's blocks begin with: those that came with a chat serve nothing else."""
        with self._library.read() as db:
            row = db.execute("SELECT imported FROM document WHERE id = ?", [id]).fetchone()
        return imported_root(recipe, row[0]) if row and row[0] else recipe

    def documents(self, recipe: str) -> list[DocumentInfo]:
        """All documents, newest first, with tokens and state under this recipe."""
        with self._library.read() as db:
            return [_info(row) for row in db.execute(_INFO + " ORDER BY d.rowid DESC", {"recipe": recipe})]

    def document(self, id: str, recipe: str) -> DocumentInfo:
        """One document.

        Args:
            id: its id, its exact title, or the beginning of its id when no other id begins so.

        Raises:
            NotFoundError: nothing, or more than one document, answers to `id`.
        """
        with self._library.read() as db:
            found = find(db, "document", id, "SELECT id FROM document WHERE title = ?")
            return _info(db.execute(_INFO + " WHERE d.id = :id", {"recipe": recipe, "id": found}).fetchone())

    def sha256(self, id: str) -> str:
        """Hex digest of the bytes that a document was made of."""
        with self._library.read() as db:
            _require(db, id)
            return db.execute("SELECT sha256 FROM document WHERE id = ?", [id]).fetchone()[0]

    def parts(self, id: str) -> list[Part]:
        """Every part in reading order."""
        with self._library.read() as db:
            _require(db, id)
            return [_part(row) for row in db.execute(_PART + " WHERE document = ? ORDER BY number", [id])]

    def part(self, id: str, index: int) -> Part:
        """One part by its 1-based index."""
        with self._library.read() as db:
            _require(db, id)
            row = db.execute(_PART + " WHERE document = ? AND number = ?", [id, index]).fetchone()
        if row is None:
            raise NotFoundError(f"document {id}: has no part {index}")
        return _part(row)

    def outline(self, id: str) -> list[tuple[int, str, str | None]]:
        """(index, label, chapter) of every part, in reading order."""
        with self._library.read() as db:
            _require(db, id)
            rows = db.execute("SELECT number, label, chapter FROM part WHERE document = ? ORDER BY number", [id])
            return [(number, label, chapter) for number, label, chapter in rows]

    def parts_beside(self, id: str) -> dict[str, frozenset[int]]:
        """Indices of the parts that are front matter or licence, by kind; those are muted unless asked for."""
        found: dict[str, set[int]] = {}
        with self._library.read() as db:
            kinds = "SELECT kind, number FROM part WHERE document = ? AND kind IN ('front matter', 'licence')"
            for kind, number in db.execute(f"{kinds} ORDER BY number", [id]):
                found.setdefault(kind, set()).add(number)
        return {kind: frozenset(numbers) for kind, numbers in found.items()}

    def line_of(self, id: str, index: int) -> int:
        """Number of the line that a part of a text begins on; a text's parts follow each other without a gap."""
        with self._library.read() as db:
            ends = "SELECT SUM(length(text) - length(replace(text, char(10), ''))) FROM part"
            before = db.execute(f"{ends} WHERE document = ? AND number < ?", [id, index]).fetchone()[0]
        return 1 + (before or 0)

    def search_parts(self, query: str, limit: int = 20, document: str | None = None) -> list[tuple[str, int, str, str]]:
        """Parts that hold every word of the query, best first: (document, part index, label, snippet)."""
        if (terms := match(query)) is None:
            return []
        with self._library.read() as db:
            return db.execute(
                "SELECT p.document, p.number, p.label, snippet(part_fts, 0, '', '', '…', :words) "
                "FROM part_fts JOIN part p ON p.id = part_fts.rowid "
                "WHERE part_fts MATCH :terms AND (:document IS NULL OR p.document = :document) "
                "ORDER BY part_fts.rank LIMIT :limit",
                {"terms": terms, "document": document, "limit": limit, "words": SNIPPET_WORDS},
            ).fetchall()

    def delete_document(self, id: str) -> None:
        """Forget a document and what was read of it. Chats about it keep their messages and evidence."""
        with self._library.write() as db:
            _require(db, id)
            db.execute("DELETE FROM document WHERE id = ?", [id])

    def set_memories(self, id: str, recipe: str, memories: Sequence[MemoryText]) -> None:
        """Keep the token ids and spans of a document's memories. Other ones than before lose their manifests."""
        if self.memories(id, recipe) == list(memories):
            return
        rows = [
            [id, recipe, number, len(memory.token_ids), _spans_json(memory.spans), pack(memory.token_ids)]
            for number, memory in enumerate(memories)
        ]
        with self._library.write() as db:
            _require(db, id)
            db.execute("DELETE FROM memory WHERE document = ? AND recipe = ?", [id, recipe])
            columns = "(document, recipe, number, tokens, spans, token_ids)"
            db.conn.executemany(f"INSERT INTO memory {columns} VALUES (?, ?, ?, ?, ?, ?)", rows)

    def memories(self, id: str, recipe: str) -> list[MemoryText] | None:
        """What `set_memories` was given; None when nothing was."""
        with self._library.read() as db:
            _require(db, id)
            rows = db.execute(
                "SELECT token_ids, spans FROM memory WHERE document = ? AND recipe = ? ORDER BY number", [id, recipe]
            ).fetchall()
        memories = [MemoryText(unpack(ids), tuple(Span(*span) for span in json.loads(spans))) for ids, spans in rows]
        return memories or None

    def add_note(self, document: str, note: str) -> None:
        """Add a remark that the user should see."""
        with self._library.write() as db:
            _require(db, document)
            db.execute("UPDATE document SET notes = json_insert(notes, '$[#]', ?) WHERE id = ?", [note, document])

    def set_state(self, id: str, recipe: str, state: DocumentState, detail: str = "") -> None:
        """Say where reading stands."""
        with self._library.write() as db:
            _require(db, id)
            db.execute("INSERT OR REPLACE INTO reading VALUES (?, ?, ?, ?)", [id, recipe, state, whole(detail)])

    def latest_recipe(self) -> str:
        """The recipe that a document was last read with; empty when nothing was read."""
        with self._library.read() as db:
            row = db.execute("SELECT recipe FROM reading ORDER BY rowid DESC LIMIT 1").fetchone()
        return row[0] if row else ""

    def set_manifest(self, id: str, recipe: str, memory: int, keys: Sequence[str]) -> None:
        """Name the blocks of a memory sealed so far, in order. Costs only what is new.

        Args:
            memory: its number in the document.
            keys: chained keys: equal keys at one place mean equal keys before it.
        """
        with self._library.write() as db:
            owner = _memory_id(db, id, recipe, memory)
            stored = db.execute("SELECT COALESCE(MAX(position) + 1, 0) FROM manifest WHERE memory = ?", [owner])
            same = min(stored.fetchone()[0], len(keys))
            at = "SELECT key FROM manifest WHERE memory = ? AND position = ?"
            if same and db.execute(at, [owner, same - 1]).fetchone()[0] != keys[same - 1]:
                same = 0
            db.execute("DELETE FROM manifest WHERE memory = ? AND position >= ?", [owner, same])
            db.conn.executemany(
                "INSERT INTO manifest VALUES (?, ?, ?)",
                ((owner, position, keys[position]) for position in range(same, len(keys))),
            )

    def manifest(self, id: str, recipe: str, memory: int) -> list[str]:
        """Block keys of a memory, in order; empty when nothing is sealed."""
        with self._library.read() as db:
            owner = _memory_id(db, id, recipe, memory)
            rows = db.execute("SELECT key FROM manifest WHERE memory = ? ORDER BY position", [owner])
            return [row[0] for row in rows]


def _part_rows(id: str, document: Document, cancelled: Callable[[], bool]) -> Iterator[list[Any]]:
    for part in document.parts:
        if cancelled():
            raise CancelledError("putting it into the library was cancelled")
        yield [id, *_part_row(part)]


def contents(document: Document) -> str:
    """A digest of the kind of a document and of all its parts."""
    digest = hashlib.sha256(f"imported {document.kind}".encode())
    for part in document.parts:
        digest.update(json.dumps([part.chapter, *_part_row(part)]).encode())
    return digest.hexdigest()


def imported_root(recipe: str, digest: str) -> str:
    """See `Documents.root`, of a document with these contents."""
    return f"{recipe}/imported/{digest}"


def _insert(
    db: Database,
    document: Document,
    sha256: str,
    imported: str | None,
    cancelled: Callable[[], bool] = lambda: False,
) -> str:
    id = sha256[:ID_DIGITS]
    if db.execute("SELECT 1 FROM document WHERE id = ?", [id]).fetchone():
        raise StoreError(f"{document.title}: its id {id} belongs to another document; rename or change it")
    title, (notes, skipped) = one_line(document.title), _remarks(document)
    row = [id, sha256, title, document.kind, notes, skipped, now(), imported]
    columns = "id, sha256, title, kind, notes, skipped, created, imported"
    db.execute(f"INSERT INTO document ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    db.conn.executemany(
        f"INSERT INTO part (document, {_PART_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        _part_rows(id, document, cancelled),
    )
    return id


def _confirm(db: Database, id: str, document: Document) -> None:
    """Take the mark from a document whose file was added; the memory that came with it does not serve any more."""
    row = [document.sha256, one_line(document.title), *_remarks(document), id]
    db.execute("UPDATE document SET sha256 = ?, title = ?, notes = ?, skipped = ?, imported = NULL WHERE id = ?", row)
    db.execute("DELETE FROM memory WHERE document = ?", [id])
    db.execute("DELETE FROM reading WHERE document = ?", [id])


def _remarks(document: Document) -> tuple[str, str]:
    skipped = [[item.name, item.reason] for item in document.skipped]
    return json.dumps(document.notes), json.dumps(skipped)


def find(db: Database, table: str, id: str, by_title: str | None = None) -> str:
    """The whole id for an id, a title, or the beginning of one id.

    Raises:
        NotFoundError: nothing, or more than one row, answers to it.
    """
    id = whole(id)
    if db.execute(f"SELECT 1 FROM {table} WHERE id = ?", [id]).fetchone():
        return id
    found = db.execute(by_title, [id]).fetchall() if by_title else []
    if not found and id:
        found = db.execute(f"SELECT id FROM {table} WHERE substr(id, 1, length(?)) = ?", [id, id]).fetchall()
    if not found:
        raise NotFoundError(f"{table} {id!r}: not in the library; `{table}s` lists what is there")
    if len(found) > 1:
        raise NotFoundError(f"{table} {id!r}: stands for {', '.join(row[0] for row in found[:5])}; give a whole id")
    return found[0][0]


def _texts(db: Database, id: str) -> list[str]:
    return [row[0] for row in db.execute("SELECT text FROM part WHERE document = ? ORDER BY number", [id])]


def _require(db: Database, id: str) -> None:
    if not db.execute("SELECT 1 FROM document WHERE id = ?", [id]).fetchone():
        raise NotFoundError(f"document {id!r}: not in the library; it was deleted, or never added")


def _memory_id(db: Database, id: str, recipe: str, memory: int) -> int:
    row = db.execute(
        "SELECT id FROM memory WHERE document = ? AND recipe = ? AND number = ?", [id, recipe, memory]
    ).fetchone()
    if row is None:
        raise NotFoundError(f"document {id!r}: has no memory {memory} under recipe {recipe[:12]}; read it first")
    return row[0]


def _info(row: tuple[Any, ...]) -> DocumentInfo:
    *plain, imported, notes, skipped = row
    marks = (IMPORTED,) if imported else ()
    return DocumentInfo(
        *plain, notes=(*marks, *json.loads(notes)), skipped=tuple(Skipped(*item) for item in json.loads(skipped))
    )


def _part_row(part: Part) -> list[Any]:
    """What `_PART_COLUMNS` hold of a part."""
    chapter = None if part.chapter is None else whole(part.chapter)
    places = json.dumps([[start, whole(label)] for start, label in part.places])
    plain = [part.index, whole(part.label), whole(part.text), chapter, part.group, part.first_line]
    return [*plain, part.kind, places, json.dumps(part.boxes)]


def _part(row: tuple[Any, ...]) -> Part:
    *plain, places, boxes = row
    return Part(
        *plain, places=tuple((start, label) for start, label in json.loads(places)),
        boxes=tuple(Box(*box) for box in json.loads(boxes)),
    )  # fmt: skip


def _spans_json(spans: Sequence[Span]) -> str:
    return json.dumps([[span.part, span.token_start, span.token_end] for span in spans])
