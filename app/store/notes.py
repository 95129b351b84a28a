"""Notes of questions about a whole text, kept part by part as they come."""

import json
from collections.abc import Mapping
from typing import Any

from app.store.database import SqliteFile
from app.wellformed import whole


class Notes:
    """The part of the library that keeps notes, by document, task and the model that made them."""

    def __init__(self, library: SqliteFile) -> None:
        self._library = library

    def add_part_notes(self, document: str, task: str, recipe: str, values: Mapping[int, Any]) -> None:
        """Keep what parts gave, as JSON by the parts' indices; together or not at all, and none that is there."""
        rows = [[document, whole(task), recipe, part, json.dumps(value)] for part, value in values.items()]
        with self._library.write() as db:
            db.conn.executemany("INSERT OR IGNORE INTO note VALUES (?, ?, ?, ?, ?)", rows)

    def part_notes(self, document: str, task: str, recipe: str) -> dict[int, Any]:
        """What `add_part_notes` was given, by part."""
        with self._library.read() as db:
            find = "SELECT part, value FROM note WHERE document = ? AND task = ? AND recipe = ? ORDER BY part"
            rows = db.execute(find, [document, whole(task), recipe]).fetchall()
        return {part: json.loads(value) for part, value in rows}
