"""The command that asks."""

import argparse
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

from app.chat.focus import EVERYTHING, Sight
from app.cli.evidence import answer_values, by_ocr, covered, memory_line
from app.cli.session import Session
from app.memory.config import GenerationConfig
from app.records import Delta, Done, Evidence, Reading
from app.settings import fill
from app.system import duration
from app.tasks.scoring import MAY_SAY, ending, knows, only_refuses

if TYPE_CHECKING:
    from app.chat import DocumentChat

EXCERPT_CHARS = 160


def ask(session: Session, args: argparse.Namespace) -> None:
    """Ask one question; without documents and chat it is a plain chat."""
    flags = {name: getattr(args, name) for name in ("temperature", "top_p", "seed", "max_new_tokens")}
    generation = fill(GenerationConfig, flags=flags, environment={})
    with session.chat() as chat:
        documents = [chat.library.document(name).id for name in args.document]
        session.model_ready(chat)
        if args.chat and (policy := chat.model.policy_of(args.chat)) != session.settings.policy:
            started = session.settings.policy
            session.out.say(f"chat {args.chat} is answered under policy {policy}; --policy {started} is for new chats")
        if args.chat and (other := chat.shelf.other_model(chat.saved.chat(args.chat).id)):
            session.out.say(f"chat {args.chat} was read with {other.name}; this reads {other.cost}")
        events = chat.ask(
            args.question,
            chat=args.chat,
            documents=documents,
            generation=generation,
            focus=(*args.focus, *([EVERYTHING] if args.everything else [])),
            mute=tuple(args.mute),
            without=args.without,
            through=args.through,
        )
        follow(session, chat, events)


def follow(session: Session, chat: "DocumentChat", events: Generator[Reading | Delta | Done]) -> None:
    """Show an answer as it comes, what it rests on and what it cost."""
    with closing(events):
        for event in events:
            if isinstance(event, Reading):
                session.reading(event)
            elif isinstance(event, Delta):
                session.out.stream(event.text)
            elif isinstance(event, Done):
                _answered(session, chat, event)


def _answered(session: Session, chat: "DocumentChat", done: Done) -> None:
    session.out.stream("\n")
    demonstration = chat.model.model_state().demonstration
    stats, refused = done.stats, only_refuses(done.answer)
    values = {
        "answer": done.answer,
        "ended": stats.ended,
        "refused": refused,
        "chat": done.chat,
        "policy": stats.policy,
        "tokens_read": stats.tokens_read,
        "tokens_reused": stats.tokens_reused,
        "new_tokens": stats.new_tokens,
        "seconds_to_first_token": stats.seconds_to_first_token,
        "tokens_per_s": stats.tokens_per_s,
        "peak_bytes": stats.peak_bytes,
        **answer_values(done),
        "coverage": covered(chat, done),
        "parts": stats.parts,
        "parts_done": stats.parts_done,
        "parts_reused": stats.parts_reused,
    }
    longer = "; --max-new-tokens allows a longer one" if stats.ended == "length" else ""
    ended = ending(stats.ended, stats.new_tokens).rstrip(".") + longer
    may_say = MAY_SAY if refused and demonstration and done.evidence else ""
    for remark in filter(None, (ended, may_say, stats.note, Sight.of(stats.as_dict()).words)):
        session.out.say(remark)
    if stats.whole and not session.out.json:
        before = f", {stats.parts_reused:,} of them before" if stats.parts_reused else ""
        session.out.say(f"went through {stats.parts_done:,} of {stats.parts:,} parts{before}; chat {done.chat}")
    elif not session.out.json:
        _looked(session, done, refused)
        if line := knows(stats.as_dict()):
            session.out.say(line)
        looked_again = f"second look at {stats.second_look} regions; " if stats.second_look else ""
        session.out.say(
            f"{stats.tokens_read:,} tokens read, {stats.tokens_reused:,} reused, {stats.new_tokens:,} new in "
            f"{duration(stats.seconds)}, {stats.tokens_per_s:,.1f} tokens/s; {memory_line(stats)}; {looked_again}"
            f"policy {stats.policy}; chat {done.chat}"
        )
    session.out.result(values)


def _looked(session: Session, done: Done, refused: bool) -> None:
    """The passages; under a refusal they support nothing."""
    if done.evidence:
        found = "Looked at, without finding an answer" if refused else "Looked at"
        session.out.say(f"{found} (share of the attention on the documents):")
    for passage in done.evidence:
        excerpt = " ".join(passage.text.split())[:EXCERPT_CHARS]
        found = _share(passage) + by_ocr(passage)
        session.out.say(f"[{passage.id}] {passage.title}, {passage.label} ({found}): {excerpt}")


def _share(passage: Evidence) -> str:
    """A passage's share of the attention, and what found it where an answer did not see all."""
    by = {"attention": ", found by attention", "words": ", found by words", "both": ", found by attention and words"}
    return f"{passage.weight:.0%}{by.get(passage.found_by, '')}"
