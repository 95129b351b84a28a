"""How a document begins and what the turns of a chat become: the same token ids in the app and in training.

Turns are what the model's own chat template makes of them, encoded as one string: SentencePiece puts blanks at the
borders of strings, so pieces encoded one by one would be other tokens. Contents go in after the template is rendered:
a marker that somebody types stays text.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any

from app.errors import InputError, ModelError

BOS = "\x04"  # stands for the BOS that a template puts, while it is rendered
PAD, EDGE = "\n\n\n", "\x0b"  # around each mark, so that templates which trim contents give themselves away
MARK = re.compile(rf"({PAD})?({EDGE})?\x02(\d+)\x03({EDGE})?({PAD})?")
END_WITHIN = 8  # characters between an answer and its end marker
ANSWER = "assistant"
TEXT_END = "<|endoftext|>"  # parted the texts in the pretraining of many models
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered chat: text of the template, or a place for a content.

    Attributes:
        content: number of the message whose content goes in, or -1.
        owner: number of the message that the tokens belong to, or -1: its content, and the end marker of an answer.
        strip: what the template takes off the content left and right: None for nothing, "" for all blanks.
    """

    text: str = ""
    content: int = -1
    owner: int = -1
    strip: tuple[str | None, str | None] = (None, None)

    def fill(self, messages: Messages) -> str:
        if self.content < 0:
            return self.text
        text, (left, right) = messages[self.content]["content"], self.strip
        text = text if left is None else text.lstrip(left or None)
        return text if right is None else text.rstrip(right or None)


class Turns:
    """A model's tokenizer and chat template. Without a template, turns are lines: "Question: ..." and "Answer: ...".

    Attributes:
        system_prompt: put before a chat that has no system message of its own.
        text_tokenizer: tokenizers.Tokenizer that takes markers inside a text as plain characters.
        start_id: the token with which a document begins, never a marker of turns; None where the model has none.
        end_id: the token with which the template ends an answer; None where it has none.
    """

    def __init__(self, tokenizer: Any, system_prompt: str = "", document_start: str | None = None) -> None:
        """Takes a fast tokenizer of transformers.

        Args:
            document_start: the token with which a document begins; None finds one.

        Raises:
            ModelError: `document_start` is no token.
        """
        self.tokenizer, self.system_prompt = tokenizer, system_prompt
        text = tokenizer.backend_tokenizer.to_str()
        later, self._first_only = _without_prefix(text)
        self.text_tokenizer, self._parser = self._made(text, markers=False), self._made(text, markers=True)
        same = json.loads(later) == json.loads(text)
        self._later = self.text_tokenizer if same else self._made(later, markers=False)
        added = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        longest_first = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._markers = re.compile("|".join(longest_first) or r"(?!)")
        self._layouts: dict[tuple[str, tuple[str, ...], bool], tuple[str, tuple[Piece, ...]]] = {}
        self.start_id = self._start_id(document_start)
        self.end_id = self._end_id()

    def _made(self, text: str, *, markers: bool) -> Any:
        made = type(self.tokenizer.backend_tokenizer).from_str(text)
        made.no_truncation()
        made.no_padding()
        made.encode_special_tokens = not markers
        return made

    def question(
        self, messages: Messages, last_token: int | None = None, stop_ids: frozenset[int] = frozenset()
    ) -> list[int]:
        """Token ids of what the last user message adds to the chat, the answer's opening included.

        Args:
            messages: role/content of the whole chat, ending in a user message.
            last_token: the last token of the chat that was run; None when nothing of it was.
            stop_ids: tokens that end an answer: such a last token is not said again.

        Raises:
            InputError: the template refuses the turns.
        """
        messages = self._with_system(messages)
        before, pieces = self._layout(messages, opening=True)
        answers = [i for i, message in enumerate(messages) if message["role"] == ANSWER]
        if last_token is None or not answers:
            return self._encode(before, pieces, messages)[0]
        place = next((i for i, piece in enumerate(pieces) if piece.content == answers[-1]), None)
        if place is None:  # the template leaves out old answers: open the turn afresh
            messages = messages[-1:]
            return self._encode(*self._layout(messages, opening=True), messages)[0]
        rest = [replace(piece, owner=-1) for piece in pieces[place + 1 :]]
        end = re.match(r"\s*" + re.escape(self.tokenizer.decode([last_token])), rest[0].text if rest else "")
        if last_token in stop_ids and end:  # an answer that was cut still needs its end
            rest[0] = replace(rest[0], text=rest[0].text[end.end() :])
            return self._encode(end[0].lstrip(), rest, messages)[0]
        return self._encode(None, rest, messages)[0]

    def chat(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Token ids of a whole chat, and the number of the message that each belongs to: -1 for the template's words.

        An answer owns its end marker, the template's or else EOS.

        Raises:
            InputError: the template refuses the turns or does not show all of them.
        """
        whole = self._with_system(messages)
        before, pieces = self._layout(whole, opening=False)
        shown, extra = [piece.content for piece in pieces if piece.content >= 0], len(whole) - len(messages)
        if shown != list(range(len(whole))):
            raise InputError(
                f"this model's chat template does not show all {len(messages)} turns "
                f"(those shown: {[number - extra for number in shown]})"
            )
        ids, owners = self._encode(before, pieces, whole)
        return ids, [max(owner - extra, -1) for owner in owners]

    # --- rendering

    def _with_system(self, messages: Messages) -> list[dict[str, str]]:
        """With the system prompt, in the first question where the template has no place for a system message."""
        messages = list(messages)
        if not self.system_prompt or not messages or messages[0]["role"] == "system":
            return messages
        whole = [{"role": "system", "content": self.system_prompt}, *messages]
        try:
            if any(piece.content == 0 for piece in self._layout(whole, opening=True)[1]):
                return whole
        except InputError:
            pass
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        if first is not None:
            content = f"{self.system_prompt}\n\n{messages[first]['content']}"
            messages[first] = {**messages[first], "content": content}
        return messages

    def _layout(self, messages: Messages, *, opening: bool) -> tuple[str, tuple[Piece, ...]]:
        """(BOS that the template begins with, else "", pieces after it) of a chat with these roles.

        Args:
            opening: an answer's opening follows.
        """
        template = self.tokenizer.chat_template
        key = (str(template), tuple(message["role"] for message in messages), opening)
        if key not in self._layouts:
            bos, text = self._without_bos(self._render(key[1], opening))
            self._layouts[key] = bos, tuple(self._owned(list(_pieces(text)), key[1], opening))
        return self._layouts[key]

    def _render(self, roles: tuple[str, ...], opening: bool) -> str:
        marked = [{"role": r, "content": f"{PAD}{EDGE}\x02{i}\x03{EDGE}{PAD}"} for i, r in enumerate(roles)]
        if not self.tokenizer.chat_template:
            names = {"user": "Question: ", "assistant": "Answer: "}
            lines = "".join(f"\n{names.get(m['role'], '')}{m['content']}" for m in marked)
            return lines + ("\nAnswer:" if opening else "")
        bos = {"bos_token": BOS} if self.tokenizer.bos_token else {}
        try:
            return self.tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=opening, **bos)
        except Exception as error:  # templates are programs; what they raise is theirs
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"this model's chat template refuses the turns {', '.join(roles)}: {reason}") from error

    def _without_bos(self, text: str) -> tuple[str, str]:
        """The BOS that a template puts first, and the rest. The text of a marker that comes again is no BOS."""
        bos = self.tokenizer.bos_token or ""
        if text.startswith(BOS):
            return bos, text[1:].replace(BOS, bos)
        if bos and text.startswith(bos) and not self._marks_turns(bos):
            return bos, text.removeprefix(bos).replace(BOS, bos)
        return "", text.replace(BOS, bos)

    def _marks_turns(self, marker: str) -> bool:
        """Whether the template has a marker's own text anywhere but at its beginning."""
        for roles in (("user", "assistant", "user"), ("user",)):
            try:
                return marker in self._render(roles, True)[1:]
            except InputError:
                continue
        return False

    def _owned(self, pieces: list[Piece], roles: tuple[str, ...], opening: bool) -> Iterator[Piece]:
        """Pieces in which each answer owns its end marker, the template's or EOS, and blanks that it begins with."""
        answers = [place for place, piece in enumerate(pieces) if piece.content >= 0 and roles[piece.content] == ANSWER]
        for i, piece in enumerate(pieces):
            if i - 1 in answers and (end := self._end_of(piece.text)):
                yield Piece(piece.text[:end], owner=pieces[i - 1].content)
                piece = replace(piece, text=piece.text[end:])
            if i + 1 in answers and not opening and (blanks := self._blanks(piece, pieces[i + 1].content, roles)):
                yield replace(piece, text=piece.text[:-blanks])
                piece = Piece(piece.text[-blanks:], owner=pieces[i + 1].content)
            yield piece
            after = pieces[i + 1].text if i + 1 < len(pieces) else ""
            if i in answers and not self._end_of(after):
                yield Piece(self.tokenizer.eos_token or "", owner=piece.content)

    def _blanks(self, before: Piece, answer: int, roles: tuple[str, ...]) -> int:
        """Blanks before an answer that the app leaves to the model, because the template's opening lacks them."""
        blanks = len(before.text) - len(before.text.rstrip(" "))
        if not blanks:
            return 0
        opened, closed = (self._render(roles[:answer], opening) for opening in (True, False))
        return max(0, blanks - (len(opened) - len(opened.rstrip(" ")))) if opened != closed else 0

    def _end_of(self, text: str) -> int:
        """Characters up to and with the end marker that a template puts after an answer; 0 where it has none."""
        found = self._markers.search(text)
        return found.end() if found and found.start() <= END_WITHIN else 0

    # --- encoding

    def _encode(self, before: str | None, pieces: Sequence[Piece], messages: Messages) -> tuple[list[int], list[int]]:
        """Token ids of the pieces as one string, and the owner of each.

        Args:
            before: the marker that stands before them, "" at the beginning of a string, None in the middle of a text.
        """
        texts = [piece.fill(messages) for piece in pieces]
        ends = list(accumulate(map(len, texts)))
        if any(p.content >= 0 and self._markers.search(t) for p, t in zip(pieces, texts, strict=True)):
            tokens = list(self._runs(before, pieces, texts))
        else:
            tokens = list(self._whole(before, "".join(texts)))
        owners = []
        for _, start, end in tokens:
            touched = pieces[bisect_right(ends, start) : bisect_right(ends, end - 1) + 1] if end > start else ()
            owners.append(next((piece.owner for piece in touched if piece.owner >= 0), -1))
        return [token[0] for token in tokens], owners

    def _whole(self, before: str | None, text: str) -> Iterator[tuple[int, int, int]]:
        """(id, start, end) of every token of a text in which all markers are meant."""
        head = 0
        if before is None:
            found = self._markers.search(text)
            head = found.start() if found else len(text)
            yield from _tokens(self._later, text[:head], 0)
        marked = _tokens(self._parser, (before or "") + text[head:], head - len(before or ""))
        yield from islice(marked, 1 if before else 0, None)

    def _runs(
        self, before: str | None, pieces: Sequence[Piece], texts: Sequence[str]
    ) -> Iterator[tuple[int, int, int]]:
        """(id, start, end) of every token, where a content spells a marker: each run between markers by itself."""
        run, start, place, first = "", 0, 0, before == ""

        def flush() -> Iterator[tuple[int, int, int]]:
            later = (self._first_only and not first) or (before is None and start == 0)
            yield from _tokens(self._later if later else self.text_tokenizer, run, start)

        for piece, text in zip(pieces, texts, strict=True):
            at = 0
            for found in self._markers.finditer(text) if piece.content < 0 else ():
                run += text[at : found.start()]
                if run:
                    yield from flush()
                yield self._special[found[0]], place + found.start(), place + found.end()
                run, start, at, first = "", place + found.end(), found.end(), False
            run, place = run + text[at:], place + len(text)
        if run:
            yield from flush()

    # --- what the template tells

    def _start_id(self, stated: str | None) -> int | None:
        if stated is not None:
            id = self.tokenizer.convert_tokens_to_ids(stated)
            if id is None or self.tokenizer.convert_ids_to_tokens(id) != stated:
                raise ModelError(f"document_start = {stated!r}: is no token of this model; see its tokenizer.json")
            return id
        bos = self.tokenizer.bos_token
        for marker in filter(None, (bos, TEXT_END)):
            if marker in self._special and not self._marks_turns(marker):
                return self._special[marker]
        return None

    def _end_id(self) -> int | None:
        if not self.tokenizer.chat_template:
            return None
        try:
            _, pieces = self._layout([{"role": "user"}, {"role": "assistant"}], opening=False)
        except InputError:
            return None
        end = next((piece.text for piece in pieces if piece.owner == 1 and piece.content < 0), "")
        found = self._markers.search(end)
        return self._special[found[0]] if found else None


def _tokens(tokenizer: Any, text: str, shift: int) -> Iterator[tuple[int, int, int]]:
    """(id, start, end) of a text's tokens, places moved by `shift`."""
    found = tokenizer.encode(text, add_special_tokens=False)
    return ((id, shift + start, shift + end) for id, (start, end) in zip(found.ids, found.offsets, strict=True))


def _pieces(text: str) -> Iterator[Piece]:
    """A rendered chat in pieces."""
    place = 0
    for found in MARK.finditer(text):
        left, right = found[1] or "", found[5] or ""
        strip_left = "" if not found[2] else None if left else "\n"
        strip_right = "" if not found[4] else None if right else "\n"
        before = text[place : found.start()] + (left if strip_left == "" else "")
        if before:
            yield Piece(before)
        number = int(found[3])
        yield Piece(content=number, owner=number, strip=(strip_left, strip_right))
        place = found.end() - (len(right) if strip_right == "" else 0)
    if text[place:]:
        yield Piece(text[place:])


def _without_prefix(text: str) -> tuple[str, bool]:
    """A tokenizer that puts no blank before a text, for text that goes on; and whether only a first text gets one."""
    values = json.loads(text)
    normalizer = values.get("normalizer") or {}
    steps = normalizer.get("normalizers") or [normalizer]
    if any(step.get("type") == "Prepend" for step in steps):
        kept = [step for step in steps if step.get("type") != "Prepend"]
        values["normalizer"] = {"type": "Sequence", "normalizers": kept}
    first_only = False
    splitter = values.get("pre_tokenizer") or {}
    for step in splitter.get("pretokenizers") or [splitter]:
        if "prepend_scheme" in step:
            first_only |= step["prepend_scheme"] == "first"
            step["prepend_scheme"] = "never"
        if "add_prefix_space" in step and step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
    return json.dumps(values), first_only
