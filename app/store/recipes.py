"""What each recipe digest stands for, so that a memory that does not fit is refused by name."""

import json
from collections.abc import Mapping
from typing import Any

from app.store.database import SqliteFile
from app.store.text import now

# In the order in which they are told; "weights" alone says enough of a whole other model.
NAMES = {
    "weights": "weights",
    "tokenizer": "tokenizer",
    "attention": "attention recipe",
    "policy": "policy",
    "rope": "positions",
    "dtype": "data type",
    "codec": "codec",
    "format": "memory format",
}


class Recipes:
    """The recipes that memories of this library were made by."""

    def __init__(self, library: SqliteFile) -> None:
        self._library = library

    def keep_recipe(self, digest: str, parts: Mapping[str, Any]) -> None:
        """Remember what a digest stands for; a known one costs a look-up."""
        if self.recipe_parts(digest) is not None:
            return
        with self._library.write() as db:
            row = [digest, json.dumps(parts, sort_keys=True), now()]
            db.execute("INSERT OR IGNORE INTO recipe VALUES (?, ?, ?)", row)

    def recipe_parts(self, digest: str) -> dict[str, Any] | None:
        """What `keep_recipe` was given; None for a digest of an older release."""
        with self._library.read() as db:
            row = db.execute("SELECT parts FROM recipe WHERE digest = ?", [digest]).fetchone()
        return json.loads(row[0]) if row else None

    def difference(self, stored: str, wanted: str) -> str:
        """Which parts of two recipes differ, in words; for digests that are not known, that they do."""
        old, new = self.recipe_parts(stored), self.recipe_parts(wanted)
        if old is None or new is None:
            return "another model or recipe"
        return differences(old, new)

    def read_with(self) -> dict[str, int]:
        """How many documents were read with each recipe."""
        with self._library.read() as db:
            rows = db.execute("SELECT recipe, COUNT(*) FROM reading WHERE state = 'read' GROUP BY recipe").fetchall()
        return dict(rows)

    def other_recipe(self, document: str, recipe: str) -> str | None:
        """A recipe other than this one that a document was read with, the latest; None when there is none."""
        query = "SELECT recipe FROM reading WHERE document = ? AND state = 'read' AND recipe <> ? ORDER BY rowid DESC"
        with self._library.read() as db:
            row = db.execute(query, [document, recipe]).fetchone()
        return row[0] if row else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which parts differ, with their values where those are short: "other weights, policy streaming (now keep-all)"."""
    found = []
    for name in [*NAMES, *sorted((old.keys() | new.keys()) - NAMES.keys())]:
        a, b = old.get(name), new.get(name)
        if a == b or name == "tensors":
            continue
        if name == "weights" and old.get("tensors") and old["tensors"] == new.get("tensors"):
            found.append("another configuration")
            continue
        word = NAMES.get(name, name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            inner = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
            values = ", ".join(f"{key} {_short(a.get(key))} (now {_short(b.get(key))})" for key in inner[:3])
            found.append(f"another {word}: {values}")
        elif name in ("weights", "tokenizer", "rope") or a is None or b is None:
            found.append(f"other {word}" if word.endswith("s") else f"another {word}")
        else:
            found.append(f"{word} {_short(a)} (now {_short(b)})")
    return ", ".join(found) or "the same recipe"


def _short(value: Any) -> str:
    text = "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
