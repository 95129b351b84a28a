"""Texts and turns as token ids, exactly as the app lays them out (app/models/turns.py)."""

from collections.abc import Sequence

from app.models.turns import ANSWER, Turns
from app.train.reading_layout import Piece

LONG_ANSWER = 16  # tokens from which an answer counts no more: long ones would drown the short


class ChatPieces:
    """What a text, a question and a chat become.

    Attributes:
        start: what a document begins with.
        trunk: what every chat begins with, up to the first question: the system turn.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.start = [] if turns.start_id is None else [turns.start_id]
        self.line = self.text("\n")
        self.trunk = self._trunk()

    def text(self, text: str) -> list[int]:
        """Markers inside stay text."""
        return self.turns.text_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.turns.text_tokenizer.decode(list(ids), skip_special_tokens=False)

    def branch(self, turns: Sequence[tuple[str, str]], source: int = 0) -> Piece:
        """Questions and answers of one chat after the trunk; answers are learnt, each with the marker that ends it."""
        messages = []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": ANSWER, "content": answer}]
        ids, owners = self.turns.chat(messages)
        last = max(place for place, owner in enumerate(owners) if owner == len(messages) - 1) + 1
        owners = [owner if owner % 2 else -1 for owner in owners[len(self.trunk) : last]]
        counts = {owner: min(1.0, LONG_ANSWER / owners.count(owner)) for owner in {*owners} - {-1}}
        return Piece(ids[len(self.trunk) : last], [counts.get(owner, 0.0) for owner in owners], source)

    def asked(self, question: str) -> list[int]:
        """A first question after the trunk, up to where its answer begins."""
        return self.turns.question([{"role": "user", "content": question}])[len(self.trunk) :]

    def _trunk(self) -> list[int]:
        """What two chats have in common, up to the marker that opens the first question."""
        one, other = (self.turns.question([{"role": "user", "content": text}]) for text in ("a", "Zz 1"))
        same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
        marks = set(self.turns.tokenizer.all_special_ids) | {
            id for id, token in self.turns.tokenizer.added_tokens_decoder.items() if token.special
        }
        return one[: max((i for i in range(same) if one[i] in marks), default=0)]
