"""Plain records passed between the parts. No torch, no libraries."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from app.system import duration

DocumentKind = Literal["pdf", "text", "code", "book", "document", "slides", "notebook", "web", "captions"]
DocumentState = Literal["new", "reading", "read", "failed"]
Role = Literal["system", "user", "assistant"]
Ending = Literal["", "stop", "length", "repetition"]
FROM_MEMORY = "memory"  # where an answer comes from that looked at no place of the documents more than at any time


class Box(NamedTuple):
    """Where a line that OCR read stands on its page.

    Attributes:
        char_start, char_end: of the line in its part's text.
        left, top, right, bottom: shares of the page's width and height, from its upper left corner.
        confidence: how sure OCR is of the line, 0 to 1.
    """

    char_start: int
    char_end: int
    left: float
    top: float
    right: float
    bottom: float
    confidence: float


@dataclass(frozen=True)
class Part:
    """One page of a book, one slide, one cell, or one file of a repository.

    Attributes:
        index: 1-based, in reading order.
        label: page label ("iv", "12"), section number of a text, path of a file ("src/a.py"), or its first place.
        text: cleaned text, as the model reads it.
        chapter: title of the chapter it stands in, from the outline or headings.
        group: memory that the part belongs to; parts with one group are read as one text.
        first_line: line number of the text's first line, for files (evidence is path:line-line).
        kind: "" for what is the document itself; else what it is beside it ("notes", "front matter").
        places: (first character, label) of each place that a passage can be told by ("Chapter 2, paragraph 7",
            "slide 3", "12:34"), in order; empty where the label, or the line, says it. Its lines are as they are meant.
        boxes: of a page read by OCR, in order of their characters.
    """

    index: int
    label: str
    text: str
    chapter: str | None = None
    group: int = 0
    first_line: int | None = None
    kind: str = ""
    places: tuple[tuple[int, str], ...] = ()
    boxes: tuple[Box, ...] = ()

    def boxes_of(self, char_start: int, char_end: int) -> tuple[Box, ...]:
        """Where characters [char_start, char_end) stand on the page; nothing on one that OCR did not read."""
        return tuple(box for box in self.boxes if box.char_start < char_end and char_start < box.char_end)

    def confidence(self, char_start: int, char_end: int) -> float | None:
        """How sure OCR is of characters [char_start, char_end), by the length of its lines; None where it read none."""
        boxes = self.boxes_of(char_start, char_end)
        letters = sum(box.char_end - box.char_start for box in boxes)
        return sum((box.char_end - box.char_start) * box.confidence for box in boxes) / letters if letters else None


@dataclass(frozen=True)
class Skipped:
    """Something that ingestion left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Document:
    """What ingestion made of a file, folder or archive.

    Attributes:
        sha256: hex digest of the source bytes (for a folder: of its sorted paths and digests).
        skipped: pages or files left out.
        notes: facts the user should see ("12 pages hold images only").
        keep_file: more of its file is needed than its text: to show the pages of a PDF, or to choose another encoding.
    """

    title: str
    kind: DocumentKind
    sha256: str
    parts: tuple[Part, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    keep_file: bool = False


@dataclass(frozen=True)
class Span:
    """Where a part's tokens stand inside its memory: [token_start, token_end)."""

    part: int
    token_start: int
    token_end: int


@dataclass(frozen=True)
class MemoryText:
    """Token ids of one memory (BOS first) and the spans that map them to parts."""

    token_ids: list[int]
    spans: tuple[Span, ...]


SHARED = "shared by "  # begins the remark that says whose copy a document is
MOSTLY_UNREAD = "most of this document could not be read"  # how the note of such a document begins


@dataclass(frozen=True)
class DocumentInfo:
    """A document as the library lists it."""

    id: str
    title: str
    kind: DocumentKind
    parts: int
    tokens: int
    state: DocumentState
    detail: str
    created: str
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def mostly_unread(self) -> bool:
        """True when most of its pages gave no text, so that it must not pass for read."""
        return any(note.startswith(MOSTLY_UNREAD) for note in self.notes)

    @property
    def shared_by(self) -> str:
        """The name of the user who shared it; "" for one of one's own."""
        note = next((note for note in self.notes if note.startswith(SHARED)), "")
        return note.removeprefix(SHARED).partition(";")[0]


@dataclass(frozen=True)
class Evidence:
    """A passage that the model looked at while answering.

    Attributes:
        id: stable within the store; `ask --without ID` masks it.
        document: document id.
        title: document title.
        label: page label, lines of a plain text after their chapter, or path:line-line.
        part: 1-based part index.
        char_start, char_end: offsets into the part's text.
        text: the passage.
        weight: share of the attention on far regions, 0 to 1.
        regions: [(memory of the document, region), ...] behind the passage.
        found_by: what offered it to the answer: `attention`, `words` or `both`; "" where nothing had to be chosen, and
            in answers of older releases.
        confidence: of OCR, where it read the passage; known of a new answer, and of its part later.
    """

    id: str
    document: str
    title: str
    label: str
    part: int
    char_start: int
    char_end: int
    text: str
    weight: float
    regions: tuple[tuple[int, int], ...] = ()
    found_by: str = ""
    confidence: float | None = None


@dataclass(frozen=True)
class Message:
    """A question or an answer of a chat."""

    id: int
    role: Role
    content: str
    stats: dict[str, Any] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()


class Turn(NamedTuple):
    """A question and its answer."""

    question: Message
    answer: Message


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """A chat's messages two by two; before turn n there are 2 n of them."""
    return [Turn(*pair) for pair in zip(messages[::2], messages[1::2], strict=False)]


@dataclass(frozen=True)
class Versions:
    """Answers that were given in one place of a chat, with their questions; one of them is shown.

    Attributes:
        turns: ids of the messages that the turns begin with, oldest first.
        number: which of them is shown, from 1.
    """

    turns: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class AnswerSettings:
    """How a chat is answered.

    Attributes:
        temperature, top_p, max_new_tokens: as `GenerationConfig` has them.
        system: text before the first question, "" for the model's own.
        model: id of the `Choice` that answers, see `LocalModel.choices`; "" for whichever is loaded.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    system: str = ""
    model: str = ""


@dataclass(frozen=True)
class ChatInfo:
    """A chat as the list shows it.

    Attributes:
        parent: id of the chat that it was forked from, which may be deleted since.
        policy: what it is read and answered under; "" in chats of older releases: the one that Lectern is started with.
        system: system text before its first question, "" for the model's own.
    """

    id: str
    title: str
    documents: tuple[str, ...]
    messages: int
    model: str
    updated: str
    parent: str | None = None
    policy: str = ""
    system: str = ""


MARK_START, MARK_END = "\x02", "\x03"  # around a word that was looked for


@dataclass(frozen=True)
class ChatHit:
    """A chat that holds the words that were looked for, which stand between MARK_START and MARK_END.

    Attributes:
        text: the first message that holds them, cut to what is around; "" where the title alone does.
        messages: how many messages hold them.
    """

    chat: str
    title: str
    text: str
    messages: int


@dataclass(frozen=True)
class Reading:
    """Progress of reading one document.

    Attributes:
        label: page or file being read.
        reused: tokens found in the store, not read again.
        eta_s: seconds left at the present speed.
    """

    document: str
    title: str
    tokens_done: int
    tokens_total: int
    tokens_per_s: float
    label: str
    reused: int
    eta_s: float


@dataclass(frozen=True)
class Working(Reading):
    """Progress of a question about the whole text: its tokens are parts, `reused` those gone through before.

    Attributes:
        text: the answer as far as it is known.
    """

    text: str = ""


@dataclass(frozen=True)
class Delta:
    """New text of the answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """What became of the tokens that a chat's memories read.

    Attributes:
        tokens_kept: tokens that can be attended whole, of documents and chat.
        tokens_compressed: tokens of which a part is kept (some heads only, or merged with others).
        tokens_evicted: tokens that can no longer be attended; these three make up all that was read.
        tokens_quantized: tokens held as int8 or int4, of those kept or compressed.
        tokens_device, tokens_host, tokens_disk, tokens_ids: tokens held whose keys and values were on the GPU, in
            memory, on the disk alone, or lost and left out; together they make up those kept or compressed.
        tokens_reread: tokens held that were read again since their memory was opened, its stored copy being damaged.
        codec: how keys and values are stored.
    """

    tokens_kept: int = 0
    tokens_compressed: int = 0
    tokens_evicted: int = 0
    tokens_quantized: int = 0
    tokens_device: int = 0
    tokens_host: int = 0
    tokens_disk: int = 0
    tokens_ids: int = 0
    tokens_reread: int = 0
    codec: str = ""


@dataclass(frozen=True)
class AnswerStats(TokenCounts):
    """What an answer cost.

    Attributes:
        tokens_read: prompt tokens run through the model now, of documents and of the question.
        tokens_reused: tokens of documents and of the chat that were not run again.
        ended: by the model's own stop, at the longest answer, or because it repeated itself; "" when `stopped`, and in
            answers of older releases.
        note: what the user should know ("the chat's memory belongs to another model; its turns were read again").
        focus, mute: places of the documents that alone could be seen, or could not be seen.
        without: id of a passage that could not be seen.
        second_look: regions of the documents that the answer saw after a draft of it; 0: no draft, it saw all.
        saved: False when the library had no room for the turn: the next question knows nothing of it.
        policy: what it was read and answered under; "" in answers of older releases.
        model: name of the model that answered; `weights` is its fingerprint; both "" in answers of older releases.
        cited: (place in the answer's text, number of the passage under it from 1) of each mark in the text, in order.
        on_documents, on_chat, on_question: shares of the answer's attention, 0 to 1; None where not known. What is left
            went to the first tokens of texts, which draw it whatever they say, and to the answer itself.
        looked_beyond: by how much the place of the documents that gained most drew more attention than for an empty
            question; 0 where none did.
        source: `text`, or FROM_MEMORY where no place did; "" without documents, and in answers of older releases.
        whole: what the notes of a question about the whole text are kept under, "" for others; `parts_done` of `parts`
            were gone through, `parts_reused` of them before.
        held: by how many nats the documents make the model's refusal ("The text does not say.") less likely than the
            question alone does: above 0 they speak for an answer; None: not known.
    """

    tokens_read: int = 0
    tokens_reused: int = 0
    new_tokens: int = 0
    seconds_to_first_token: float = 0.0
    seconds: float = 0.0
    tokens_per_s: float = 0.0
    peak_bytes: int = 0
    stopped: bool = False
    ended: Ending = ""
    note: str = ""
    focus: tuple[str, ...] = ()
    mute: tuple[str, ...] = ()
    without: str = ""
    second_look: int = 0
    saved: bool = True
    policy: str = ""
    model: str = ""
    weights: str = ""
    cited: tuple[tuple[int, int], ...] = ()
    on_documents: float | None = None
    on_chat: float | None = None
    on_question: float | None = None
    looked_beyond: float = 0.0
    source: str = ""
    held: float | None = None
    whole: str = ""
    parts: int = 0
    parts_done: int = 0
    parts_reused: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """One token of an answer and where the model looked for it.

    Attributes:
        text: the token.
        places: (document, memory of the document, region, share) of the regions that drew most, best first; the share
            is of the token's attention on far regions.
    """

    text: str
    places: tuple[tuple[str, int, int, float], ...]


@dataclass(frozen=True)
class Scored:
    """A token of an answer and its log-probability in nats; `others` are the likeliest in its place."""

    text: str
    log_prob: float
    others: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Done:
    """End of an answer; `scored` where the request wants it."""

    answer: str
    chat: str
    evidence: tuple[Evidence, ...]
    stats: AnswerStats
    looks: tuple[Look, ...] = ()
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Removal:
    """How likely an answer is with and without a passage, in nats.

    Attributes:
        evidence: id of the passage.
        pieces: the answer, token by token.
        before, after: log-probability of each piece, with the passage and with it masked.
        control: median fall when as many other regions are masked; None where there are no others.
        controls: how many others were tried.
    """

    evidence: str
    pieces: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    control: float | None = None
    controls: int = 0

    @property
    def fall(self) -> float:
        """By how much the answer's log-probability falls without the passage."""
        return sum(self.before) - sum(self.after)

    @property
    def words(self) -> str:
        """What was found, for the user."""
        text = f"Without this passage the answer's log-probability {_change(self.fall)} nats"
        if self.control is None:
            return f"{text}."
        return f"{text}; without another of this size it {_change(self.control)} (median of {self.controls})."


def _change(fall: float) -> str:
    return f"{'rises' if fall < 0 else 'falls'} by {abs(fall):.2f}"


@dataclass(frozen=True)
class ModelState:
    """Where the model stands; `detail` says why it failed. One that is `unloaded` is loaded again when it is needed."""

    state: Literal["loading", "ready", "failed", "unloaded"]
    detail: str = ""
    name: str = ""
    trained_tokens: int = 0
    budget_tokens: int = 0
    device: str = ""
    dtype: str = ""
    backend: str = ""
    policy: str = ""
    demonstration: bool = False


@dataclass(frozen=True)
class LoadStep:
    """Where the loading of a model stands.

    Attributes:
        name: of the model.
        step: what is being done, in words.
        elapsed_s: since it began.
    """

    name: str
    step: str
    elapsed_s: float


@dataclass(frozen=True)
class OtherModel:
    """The model that made a chat's memory, where it is not the loaded one.

    Attributes:
        name: of that model.
        loaded: name of the model that is loaded.
        choice: what `switch_model` takes to load it again; "" when its folder is not known, or holds other weights now.
        tokens: what a question asked now would run again, of documents and turns.
        seconds: how long that takes, about; 0 when nothing is known of the speed.
    """

    name: str
    loaded: str
    choice: str = ""
    tokens: int = 0
    seconds: float = 0.0

    @property
    def cost(self) -> str:
        """What asking now would read: "2,303 tokens again with beta, about 4.0 s"."""
        long = f", about {duration(self.seconds)}" if self.seconds else ""
        return f"{self.tokens:,} tokens again with {self.loaded}{long}"


@dataclass(frozen=True)
class MemoryLine(TokenCounts):
    """What the memory of a chat holds, for the panel under the answers."""

    tokens: int
    regions: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    policy: str
    positions: str
    backend: str


@dataclass(frozen=True)
class Tail:
    """What a chat read after its documents, so that it can go on where it stopped.

    Attributes:
        recipe: weights and reading recipe that the blocks belong to.
        token_ids: every token after the attached memories, in order.
        keys: block keys of the tail, in order.
        turns: token count of the tail after each turn.
        memories: (document, memory) pairs that were attached, in order.
    """

    recipe: str
    token_ids: tuple[int, ...]
    keys: tuple[str, ...]
    turns: tuple[int, ...]
    memories: tuple[tuple[str, int], ...]
