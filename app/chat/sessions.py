"""Sessions: an open chat's memory, one answer over it, and what of it is kept."""

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.chat import citations, evidence, lookup, memory_files
from app.chat.focus import Sight, look
from app.chat.jobs import Job
from app.chat.knows import Unasked, held, known
from app.chat.reader import ReadDocument, Reader
from app.chat.saved import title_of
from app.errors import CancelledError, InputError, StoreError
from app.memory.config import GenerationConfig
from app.memory.memory import RegionMemory
from app.records import AnswerStats, Delta, Done, Ending, Evidence, Look, Message, Reading, Scored, Tail, turns_of
from app.runtime.cache import RegionCache
from app.runtime.decode import WORDS_SHARE
from app.runtime.engine import Engine
from app.store.store import Store
from app.system import peak_bytes
from app.tasks.scoring import only_refuses

CHANGED = (
    "the chat's documents changed; its earlier turns stay as they were, written beside the documents of that moment"
)
UNASKED, UNASKED_TOKENS = "?", 4  # what shows where the model looks whatever it is asked
OTHER_VERSION = "another version of the chat's turns was chosen; they were read again"
NO_DOCUMENT = "no document is attached to this chat, so there was no text to look in; choose one and ask again"


@dataclass
class Session:
    """A chat that is open in memory.

    Attributes:
        turns: tokens of the tail after each turn.
        keys: stored block keys of the tail's whole groups.
        system: system text before the first question, "" for the model's own.
        reread: tokens of turns that were run again since it was opened, their memory being of other versions.
        sight: what of the documents the next answer may see; `visible` the same by regions of the cache, None for all.
    """

    chat: str
    documents: list[ReadDocument]
    cache: RegionCache
    turns: list[int]
    keys: list[str]
    note: str = ""
    system: str = ""
    reread: int = 0
    sight: Sight = Sight()
    visible: list[bool] | None = None


class Sessions:
    """Opens one chat at a time and answers in it. The caller sees to it that one job runs at a time.

    Attributes:
        session: the chat opened last; the next question in it finds its memory in place.
    """

    def __init__(self, store: Store, reader: Reader) -> None:
        self.store, self.reader, self.engine = store, reader, reader.engine
        self.session: Session | None = None
        self._unasked: tuple[tuple[tuple[str, int, int], ...], Unasked] = ((), Unasked())  # of memories, told by name

    def open(self, chat: str, job: Job, so_far: Collection[str] = ()) -> Iterator[Reading]:
        """Bring documents and tail of a chat into memory; returns the Session.

        Args:
            so_far: documents of which the part that is read will do.
        """
        documents, gone = [], 0
        known = {document.id for document in self.store.documents(self.engine.recipe)}
        for id in self.store.chat(chat).documents:
            if id in known:
                begun = self.reader.so_far(id) if id in so_far else None
                documents.append(begun or (yield from self.reader.read(id, job.cancel.is_set)))
            else:
                gone += 1
        open_now, self.session = self.session, None
        if open_now and open_now.chat == chat and _same(open_now.documents, documents):
            session = replace(open_now, documents=documents, note="", reread=0)
        elif open_now and open_now.chat == chat and self._may_stay(open_now.cache.tail.token_ids, documents):
            session = replace(open_now, documents=documents, note=CHANGED if open_now.turns else "", reread=0)
            session.cache = self.engine.open_chat(_memories(documents), open_now.cache.tail)
        else:
            session = self._resume(chat, documents, job)
        session.system = self.store.chat(chat).system
        deleted = f"{gone} of the chat's documents {'was' if gone == 1 else 'were'} deleted" if gone else ""
        begun = [d.share for d in documents if d.percent]
        session.note = "; ".join([*begun, *filter(None, [session.note, deleted]), *self.reader.notes])
        self.reader.notes.clear()
        self.session = session
        return session

    def _resume(self, chat: str, documents: list[ReadDocument], job: Job) -> Session:
        """The chat as it was left; its turns are run again only when their memory cannot be used."""
        reader, engine = self.reader, self.engine
        cache = engine.open_chat(_memories(documents))
        session = Session(chat, documents, cache, [], [])
        tail = self.store.tail(chat)
        turns = len(turns_of(self.store.messages(chat)))
        session.turns = [0] * turns  # 0: the memory of that moment is gone
        if tail is None:
            session.note = "the chat's memory is not stored; its turns are read again" if turns else ""
        elif tail.recipe != engine.recipe:
            made = self.store.difference(tail.recipe, engine.recipe)
            session.note = f"the chat's memory was made with {made}; its turns are read again"
        elif not self._may_stay(tail.token_ids, documents):
            session.note = "the chat has no document any more; its turns are read again"
        elif (memory := reader.files.open_tail(tail.keys, tail.token_ids, tail.turns[-1])) is None:
            session.note = "the chat's memory is damaged; its turns are read again"
        else:
            session.cache = engine.open_chat(cache.memories, memory)
            session.turns = list(tail.turns)
            session.keys = reader.files.lasting(tail.keys, memory.tokens)
            session.note = CHANGED if turns and tail.memories != _memory_names(documents) else ""
            self._catch_up(session, job)
        return session

    def _catch_up(self, session: Session, job: Job) -> None:
        """Run the turns that are shown and that the session's memory lacks: programs answered them, or it is of other
        versions of them.

        Raises:
            CancelledError: stopped; the turns before stay.
        """
        history, before = self.store.messages(session.chat), session.cache.tail.tokens
        lacking = list(enumerate(turns_of(history)))[len(session.turns) :]
        for number, turn in lacking:
            self._run_turn(session, history[: 2 * number], turn.question.content, turn.answer.content, job)
        session.reread = session.cache.tail.tokens - before
        if not all(turn.answer.stats.get("whole") for _, turn in lacking):
            session.note = "; ".join(filter(None, [session.note, OTHER_VERSION]))

    def _run_turn(self, session: Session, history: Sequence[Message], question: str, answer: str, job: Job) -> None:
        prompt = self.prompt(session, history, question)
        said = self.engine.text_tokenizer.encode(answer, add_special_tokens=False).ids
        self.engine.run(session.cache, [*prompt, *said], cancelled=job.cancel.is_set)
        session.turns.append(session.cache.tail.tokens)

    def _may_stay(self, tail: Sequence[int], documents: Sequence[ReadDocument]) -> bool:
        """Whether turns with these tokens can follow the documents: a text needs BOS as its first sink."""
        return bool(documents) or not tail or self.engine.bos_id is None or tail[0] == self.engine.bos_id

    def see(self, session: Session, sight: Sight, *items: Evidence) -> None:
        """Let the session's answers see no more than this, and none of these passages.

        Raises:
            InputError: a place or passage that is not in the attached documents, or memories that mix places.
        """
        hidden = [*items, *([self._shown(sight.without)] if sight.without else ())]
        attached, size = self.reader.attached(session.documents), session.cache.shape.attention.region_tokens
        if (sight.hides or hidden) and self.engine.shape.compaction:
            raise InputError(
                f"focus, mute and hidden passages need memories that keep every token, and policy {self.engine.policy} "
                "drops some; ask in a chat under policy keep-all"
            )
        beside = self.store.parts_beside if not self.engine.shape.compaction else lambda document: {}
        session.sight, session.visible = look(sight, hidden, attached, self.store.parts, size, beside)
        session.cache.allow(session.visible)

    def _shown(self, id: str) -> Evidence:
        """A passage by its id.

        Raises:
            InputError: it was found by another model, or under another policy, whose regions may be others.
        """
        item, _, message = self.store.evidence(id)
        stats = self.store.message_stats(message)
        check_model(stats, self.engine)
        made = stats.get("policy")
        if made and made != self.engine.policy:
            raise InputError(
                f"passage {id}: found under policy {made}, and this chat is answered under {self.engine.policy}; ask "
                "without hiding it, then hide a passage of that answer"
            )
        return item

    def answer(
        self,
        session: Session,
        question: str,
        generation: GenerationConfig,
        job: Job,
        *,
        after: int | None = None,
    ) -> Generator[Delta | Done, None, bool]:
        """Generate and save one turn, also when it is stopped half way.

        Args:
            after: the turn comes after the first so many, as another version of those beyond. When it is stopped those
                stay shown, and it is not saved.

        Returns:
            whether there was an answer that is kept, or a stop before it.
        """
        history = self.store.messages(session.chat)
        if after is not None:
            self._take_back(session, after)
            history = history[: 2 * after]
            self.session = None  # until it is saved, the chat is the one that is stored
        run = self.generate(session, history, question, generation, job)
        done: Done | None = None
        try:
            for event in run:
                if isinstance(event, Done):
                    done = event
                else:
                    yield event
        except GeneratorExit:  # the page was closed or Stop pressed: keep what came
            job.cancel.set()
            for event in run:
                done = event if isinstance(event, Done) else done
            if done and done.answer and after is None:
                self._save(session, question, done, history, after)
            raise
        assert done is not None
        if done.stats.stopped and after is not None:
            yield replace(done, stats=replace(done.stats, note="Stopped; what was there before stays.", saved=False))
            return False
        stopped_early = done.stats.stopped and not done.answer
        yield done if stopped_early else self._save(session, question, done, history, after)
        return not stopped_early

    def take(self, session: Session, question: str, answer: str, job: Job) -> None:
        """Run and keep a turn that was had elsewhere.

        Raises:
            CancelledError: stopped; nothing of it is kept.
            StoreError: there is no room for it.
        """
        self._run_turn(session, self.store.messages(session.chat), question, answer, job)
        self.store.save_turn(session.chat, question, answer, {}, (), self.keep_tail(session))
        if self.store.chat(session.chat).title == "New chat":
            self.store.rename_chat(session.chat, title_of(question))

    def _save(self, session: Session, question: str, done: Done, history: Sequence[Message], after: int | None) -> Done:
        """Store the turn, the memory before the message that needs it. What has no room is left out, and said."""
        session.turns.append(session.cache.tail.tokens)
        stats = done.stats
        try:
            tail = self.keep_tail(session)
        except StoreError as error:
            tail, stats = None, replace(stats, note=f"{error}. This turn is kept without its memory.")
        turn = question, done.answer, stats.as_dict(), done.evidence, tail
        try:
            _, answered = self.store.save_turn(session.chat, *turn, after=after)
        except StoreError as error:
            self._take_back(session, len(session.turns) - 1)
            return replace(done, stats=replace(stats, note=f"{error}. This answer is not kept.", saved=False))
        self.session = session
        if self.store.chat(session.chat).model != self.engine.name:
            self.store.set_chat_model(session.chat, self.engine.name)
        if not history and self.store.chat(session.chat).title == "New chat":
            self.store.rename_chat(session.chat, title_of(question))
        return replace(done, evidence=answered.evidence, stats=stats)

    def _take_back(self, session: Session, turns: int) -> None:
        """Let the session stand after its first turns; the stored chat stays as it is."""
        session.turns = session.turns[:turns]
        session.cache.tail.truncate(session.turns[-1] if session.turns else 0)
        if not session.cache.tail.tokens:  # nothing is left of them, perhaps because tokens were dropped since
            session.turns = [0] * turns
        session.keys = self.reader.files.lasting(session.keys, session.cache.tail.tokens)

    def before(self, session: Session, message: int) -> tuple[Session, list[Message], Message]:
        """A twin of the session as it stood before the turn that ends in `message`, on a copy of the tail.

        Returns:
            (twin, the messages before the turn, its question); the twin may see what the answer could see.

        Raises:
            InputError: another version of the turn is shown.
        """
        messages = self.store.messages(session.chat)
        turns = turns_of(messages)
        turn = next((number for number, turn in enumerate(turns) if turn.answer.id == message), None)
        if turn is None:
            raise InputError("this passage is of an answer that is not shown; show that version, then test it")
        cache = self.engine.open_chat(session.cache.memories, session.cache.tail.copy())
        cache.tail.truncate(session.turns[turn - 1] if turn else 0)
        twin = replace(session, cache=cache, turns=session.turns[:turn], note="")
        self.see(twin, Sight.of(turns[turn].answer.stats))
        return twin, messages[: 2 * turn], turns[turn].question

    def answer_without(
        self, session: Session, item: Evidence, message: int, generation: GenerationConfig, job: Job
    ) -> Iterator[Delta | Done]:
        """Answer the question before `message` again with one more passage masked; stores nothing."""
        twin, history, question = self.before(session, message)
        self.see(twin, twin.sight, item)
        twin.sight = replace(twin.sight, without=item.id)
        yield from self.generate(twin, history, question.content, generation, job)

    def keep_tail(self, session: Session) -> Tail:
        """Write the tail's new groups, the short last one too; returns the record from which the chat can go on."""
        reader, tail = self.reader, session.cache.tail
        keys = reader.files.keep_tail(session.chat, self.engine.recipe, tail, session.keys)
        session.keys = reader.files.lasting(keys, tail.tokens)
        self.store.blocks.flush()
        return Tail(
            recipe=self.engine.recipe,
            token_ids=tuple(tail.token_ids),
            keys=tuple(keys),
            turns=tuple(session.turns),
            memories=_memory_names(session.documents),
        )

    def generate(
        self,
        session: Session,
        history: Sequence[Message],
        question: str,
        generation: GenerationConfig,
        job: Job,
    ) -> Iterator[Delta | Done]:
        """One answer over a session's cache; stores nothing."""
        cache = session.cache
        prompt, offered = self.prompt(session, history, question), self.offered(session, history, question)
        read, before = sum(document.tokens_read for document in session.documents) + session.reread, cache.tail.tokens
        reused = cache.get_seq_length() - read
        regions, cancelled = sum(offered, []), job.cancel.is_set
        tokens = _Said(self.engine.generate(cache, prompt, generation, offered=regions, cancelled=cancelled))
        pieces: list[str] = []
        for piece in self.engine.stream_text(iter(tokens), generation.stop):
            if piece := piece if pieces else piece.lstrip():  # quotations begin with a blank
                pieces.append(piece)
                yield Delta(piece)
        ended, answer = time.monotonic(), "".join(pieces).rstrip()
        first_at, stopped, said = tokens.first_at or ended, job.cancelled, tokens.said
        unasked = self.unasked(session, job) if answer and session.documents and not stopped else Unasked()
        knows = self.held(session, before, prompt, question) if unasked.density else None
        chosen = cache.evidence and cache.evidence.chosen
        # What was found damaged so far, also by the empty question, is told.
        again = memory_files.read_again_note(_memories(session.documents), self.reader.group_tokens)
        no_text = NO_DOCUMENT if not session.documents and only_refuses(answer) else ""
        stats = AnswerStats(
            tokens_read=read + len(prompt),
            tokens_reused=reused,
            new_tokens=len(said),
            seconds_to_first_token=round(first_at - job.started, 3),
            seconds=round(ended - job.started, 3),
            tokens_per_s=round(len(said) / (ended - first_at), 1) if ended > first_at else 0.0,
            peak_bytes=peak_bytes(),
            stopped=stopped,
            ended=tokens.ended_by,
            note="; ".join(filter(None, [session.note, again, no_text])),
            focus=session.sight.focus,
            mute=session.sight.mute,
            without=session.sight.without,
            second_look=len(chosen.regions) if chosen else 0,
            policy=self.engine.policy,
            model=self.engine.name,
            weights=self.engine.recipe_parts["weights"],
            codec=self.engine.shape.codec,
            held=knows,
            **cache.counts(),
        )
        looked = self._looked(session, said, stats, answer, offered, unasked)
        yield Done(answer, session.chat, *looked, scored=self._scored(cache, said))

    def offered(self, session: Session, history: Sequence[Message], question: str) -> list[list[int]]:
        """Passages that the words of a question find in what the session may see, as regions, the best first.

        None where attention looks alone.
        """
        engine, shape = self.engine, self.engine.shape
        if engine.lookup == "attention" or not session.documents:
            return []
        return lookup.offered(
            question,
            history,
            self.reader.attached(session.documents),
            self.store,
            engine.text_tokenizer,
            region_tokens=shape.attention.region_tokens,
            visible=session.visible,
            count=shape.attention.budget_regions // (1 if engine.lookup == "words" else WORDS_SHARE),
        )

    def prompt(self, session: Session, history: Sequence[Message], question: str) -> list[int]:
        """Tokens to run for a question: the turn alone, or the whole chat when its memory is gone."""
        engine, tail = self.engine, session.cache.tail
        messages = [{"role": "system", "content": session.system}] if session.system else []
        messages += [{"role": m.role, "content": m.content} for m in history]
        last = tail.token_ids[-1] if tail.tokens else None
        prompt = engine.encode_turn([*messages, {"role": "user", "content": question}], last)
        alone = session.cache.get_seq_length() == 0 and engine.bos_id is not None
        return [engine.bos_id, *prompt] if alone else prompt

    def unasked(self, session: Session, job: Job) -> Unasked:
        """Where an answer to an empty question looks in the session's documents, once for each; empty when stopped."""
        memories = _memories(session.documents)
        pairs = zip(_memory_names(session.documents), memories, strict=True)
        names = tuple((*name, memory.tokens) for name, memory in pairs)
        if self._unasked[0] != names:
            prompt = self.engine.encode_turn([{"role": "user", "content": UNASKED}], None)
            try:
                looked = self.engine.glance(memories, prompt, UNASKED_TOKENS, cancelled=job.cancel.is_set)
            except CancelledError:
                return Unasked()
            self._unasked = names, Unasked.of(looked)
        return self._unasked[1]

    def held(self, session: Session, before: int, prompt: Sequence[int], question: str) -> float | None:
        """See `app.chat.knows.held`; once `prompt` was answered."""
        system = [{"role": "system", "content": session.system}] if session.system else []
        alone = self.engine.encode_turn([*system, {"role": "user", "content": question}], None)
        return held(self.engine, session.cache, before, prompt, alone)

    def _scored(self, cache: RegionCache, said: Sequence[int]) -> tuple[Scored, ...]:
        """How likely each token was, where the answer kept it."""
        scores, decode = cache.evidence.scores if cache.evidence else [], self.engine.decode
        return tuple(
            Scored(text, log_prob, tuple((decode([token]), other) for token, other in others))
            for text, (log_prob, others) in zip(self.engine.pieces(said) if scores else (), scores, strict=False)
        )

    def _looked(
        self,
        session: Session,
        said: Sequence[int],
        stats: AnswerStats,
        answer: str,
        offered: Sequence[Sequence[int]],
        unasked: Unasked,
    ) -> tuple[tuple[Evidence, ...], AnswerStats, tuple[Look, ...]]:
        """The last fields of Done: passages that the answer looked at, its stats, and where each token looked."""
        engine, seen = self.engine, session.cache.evidence
        if seen is None:
            return (), stats, ()
        stats = replace(stats, **known(seen.shares, unasked))
        if not session.documents:
            return (), stats, ()
        attached = self.reader.attached(session.documents)
        size = engine.shape.attention.region_tokens
        found = evidence.evidence(
            seen.density.tolist(),
            attached,
            self.store,
            engine.text_tokenizer,
            size,
            found_by=seen.chosen.found_by() if seen.chosen else {},
            by_words=offered,
            answer=answer,
            unasked=unasked.density,
        )
        looks = evidence.looks(engine.pieces(said), seen.looks(), attached)
        return tuple(found), replace(stats, cited=citations.cite(answer, looks, found)), looks


class _Said:
    """The tokens of an answer as they come: kept, with the time of the first and why they ended."""

    def __init__(self, steps: Generator[int, None, Ending]) -> None:
        self._steps = steps
        self.said: list[int] = []
        self.first_at: float | None = None
        self.ended_by: Ending = ""

    def __iter__(self) -> Iterator[int]:
        try:
            while True:
                token = next(self._steps)
                self.first_at = self.first_at or time.monotonic()
                self.said.append(token)
                yield token
        except StopIteration as end:
            self.ended_by = end.value
        finally:  # also when nobody wants more of them
            self._steps.close()


def _memories(documents: Sequence[ReadDocument]) -> list[RegionMemory]:
    return [memory for document in documents for memory in document.memories]


def _memory_names(documents: Sequence[ReadDocument]) -> tuple[tuple[str, int], ...]:
    return tuple((d.document.id, number) for d in documents for number in range(len(d.memories)))


def _same(a: Sequence[ReadDocument], b: Sequence[ReadDocument]) -> bool:
    """Whether two openings hold the very same memories."""
    return [id(m) for d in a for m in d.memories] == [id(m) for d in b for m in d.memories]


def check_model(stats: Mapping[str, Any], engine: Engine) -> None:
    """Refuse to test the passages of another model's answer: regions are numbered by its own tokens.

    Raises:
        InputError: which model gave the answer.
    """
    if stats.get("weights") and stats["weights"] != engine.recipe_parts["weights"]:
        raise InputError(
            f"this answer was given by {stats['model']}, and {engine.name} is loaded; its passages can be tested with "
            f"{stats['model']} only: load that again, or ask again"
        )
