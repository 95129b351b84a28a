"""What memories cost on disk, and which go first: pins, eviction, the disk budget, compaction."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from app.errors import NotFoundError
from app.store.blocks import BlockStore
from app.store.database import SqliteFile
from app.store.recipes import Recipes

EVICTED = "its memory made room on the disk"

_NAMED = """
    SELECT m.document, m.recipe, k.key, m.id, m.tokens FROM manifest k JOIN memory m ON m.id = k.memory
    UNION ALL
    SELECT '', t.recipe, b.key, t.chat, length(t.token_ids) / 4 FROM tail_block b JOIN tail t ON t.chat = b.chat
"""

_OWN = """
    SELECT k.key FROM manifest k JOIN memory m ON m.id = k.memory WHERE m.document = :document
    UNION SELECT key FROM tail_block WHERE chat = :chat
    EXCEPT SELECT k.key FROM manifest k JOIN memory m ON m.id = k.memory WHERE m.document <> :document
    EXCEPT SELECT key FROM tail_block WHERE chat <> :chat
"""


@dataclass(frozen=True)
class Kept:
    """What memories of one policy and codec cost.

    Attributes:
        size_bytes: of K/V, key means and scores; memories that share blocks share these bytes.
    """

    policy: str
    codec: str
    tokens: int
    size_bytes: int

    @property
    def bytes_per_token(self) -> float:
        return self.size_bytes / self.tokens if self.tokens else 0.0


class Space(Recipes):
    """The part of the store that knows what disk space is used for."""

    blocks: BlockStore

    def __init__(self, library: SqliteFile) -> None:
        super().__init__(library)
        self._library = library

    def pin(self, document: str, pinned: bool = True) -> None:
        """Keep a document's memory whatever the disk budget says, or let it go like any other."""
        with self._library.write() as db:
            if not db.execute("SELECT 1 FROM document WHERE id = ?", [document]).fetchone():
                raise NotFoundError(f"document {document!r}: not in the library; it was deleted, or never added")
            statement = "INSERT OR IGNORE INTO pin VALUES (?)" if pinned else "DELETE FROM pin WHERE document = ?"
            db.execute(statement, [document])

    def pinned(self) -> set[str]:
        """Ids of the documents whose memory stays."""
        with self._library.read() as db:
            return {row[0] for row in db.execute("SELECT document FROM pin")}

    def unname(self, document: str) -> None:
        """Forget which blocks a document's memories are made of; its text and token ids stay.

        Blocks that nothing else names are garbage then.
        """
        with self._library.write() as db:
            db.execute("DELETE FROM manifest WHERE memory IN (SELECT id FROM memory WHERE document = ?)", [document])
            change = "UPDATE reading SET state = 'new', detail = '' WHERE document = ? AND state = 'read'"
            db.execute(change, [document])

    def own_keys(self, *, document: str = "", chat: str = "") -> list[str]:
        """Keys of blocks that a document's memories or a chat's tail name, and nothing else does."""
        with self._library.read() as db:
            rows = db.execute(_OWN, {"document": document, "chat": chat}).fetchall()
        return [row[0] for row in rows]

    def sizes(self) -> dict[str, int]:
        """Bytes on disk of each document's memories, under all recipes; shared blocks count for each."""
        found: dict[str, int] = defaultdict(int)
        costs = self.blocks.costs()
        for document, _, key, *_ in self._named():
            if document and key in costs:
                found[document] += costs[key].size_bytes
        return dict(found)

    def kept(self, recipe: str | None = None) -> list[Kept]:
        """Tokens and bytes by policy and codec, the largest first.

        Args:
            recipe: count memories of this one only.
        """
        costs, seen, policies = self.blocks.costs(), set(), {}
        sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        texts: dict[tuple[str, str], dict[object, int]] = defaultdict(dict)
        for _, made_by, key, text, tokens in self._named():
            if key in seen or key not in costs or recipe not in (None, made_by):
                continue
            seen.add(key)
            if made_by not in policies:
                policy = (self.recipe_parts(made_by) or {}).get("policy", "unknown")
                policies[made_by] = policy if isinstance(policy, str) else str(policy[0])  # the others are its options
            place = policies[made_by], costs[key].codec
            sums[place][0] += costs[key].tokens
            sums[place][1] += costs[key].size_bytes
            texts[place][text] = tokens
        # Blocks of slots belong to no tokens of their own: what counts is what was read for them.
        kept = [Kept(*place, tokens or sum(texts[place].values()), size) for place, (tokens, size) in sums.items()]
        return sorted(kept, key=lambda item: -item.size_bytes)

    def enforce_budget(self, in_use: Iterable[str]) -> int:
        """Delete least recently used blocks beyond the disk budget; pinned documents stay.

        A document that loses blocks is no longer `read`: what is gone is read again when it is asked about.

        Returns:
            bytes deleted.
        """
        stay, pinned = set(in_use), self.pinned()
        if pinned:
            stay.update(key for document, _, key, *_ in self._named() if document in pinned)
        evicted = self.blocks.enforce_budget(stay)
        if evicted:
            hit = {(document, recipe) for document, recipe, key, *_ in self._named() if document and key in evicted}
            with self._library.write() as db:
                for document, recipe in hit:
                    change = "UPDATE reading SET state = 'new', detail = ? WHERE document = ? AND recipe = ?"
                    db.execute(change + " AND state = 'read'", [EVICTED, document, recipe])
        return sum(evicted.values())

    def _named(self) -> list[tuple[str, str, str, object, int]]:
        """(document, recipe, key, id of the text, its tokens) of every block that the library names.

        For blocks of chats the document is "".
        """
        with self._library.read() as db:
            return db.execute(_NAMED).fetchall()
