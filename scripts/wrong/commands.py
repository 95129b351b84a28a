"""Wrong command lines: of every command, its arguments wrong one or several at a time, or the line itself malformed."""

import contextlib
import io
import os
import random
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.wellformed import whole
from scripts.wrong import values
from scripts.wrong.world import QUESTION, RECIPE, TALK, World

# Words in braces are slots: each has a right value and wrong ones. `serve` and `fetch` have wrong ones only, for the
# right ones go on for ever or ask the network.
LINES = (
    "read {document}", "read {document} {document}", "read {document} --password {text}",
    "read {document} --encoding {word}", "text {document}", "text {document} --encoding {word}",
    "text {document} --password {text}", "ask {text} -d {id}", "ask {text} --chat {chat}",
    "ask {text} -d {id} --focus {spec} --mute {spec}",
    "ask {text} --temperature {number} --top-p {number} --seed {whole} --max-new-tokens {few}",
    "ask {text} --chat {chat} --without {passage}", "evidence {passage}", "documents show {id}",
    "documents delete {id}", "documents pin {id}", "documents unpin {id}", "documents evict {id}",
    "documents search {text} --limit {whole} -d {id}", "chats list --search {text}", "chats show {chat}",
    "chats delete {chat}", "chats attach {chat} {id}", "chats detach {chat} {id}", "chats fork {chat} --turn {whole}",
    "chats edit {chat} {whole} {text} --max-new-tokens {few}", "chats export {chat} --format {form} --output {out}",
    "chats import {talk}", "chats import {talk} --text-only", "store stats {extra}", "store verify {extra}",
    "store compact {extra}", "store restore {copy}", "key {extra}", "doctor --home {folder}", "serve --port {port}",
    "fetch --model {model}", "models add {folder}", "models remove {folder}", "models list --home {folder}",
    "inspect {model}", "inspect {adapter} --base {model}",
    "merge {adapter} --out {out} --base {model} --trained-tokens {whole}",
    "eval passkey --lengths {lengths} --trials {few} --per-reading {few} --distractors {few} --seed {whole}",
    "eval passkey --times-trained {lengths} --filler prose --filler-file {document} --trials {few}",
    "eval needles --task {word} --lengths {lengths} --trials {few} --per-reading {few} --second {few}",
    "eval perplexity --file {document} --lengths {lengths} --counted {few} --windows {few}",
    "eval qa --file {questions} --limit {few} --seed {whole} --per-reading {few} --second {few}",
    "eval qa --file {questions} --haystack {document} --tokens {length} --save {out}",
    "eval questions --data {folder} --out {out} --count {few} --unanswerable {number} --longest {whole}",
    "train {recipe} --run {out}", "train {recipe} --run {out} --base {model} --out {out}",
    "train {recipe} --data {folder}",
    "samples {document} --out {out} --count {few} --lengths {lengths} --depths {numbers} --kinds {word} --turns {few}",
    "samples {document} --out {out} --validation {number} --seed {whole}",
    "ask {text} --model {model} --max-new-tokens 2", "ask {text} --adapter {adapter} --max-new-tokens 2",
    "ask {text} --policy {word} --kv-codec {word} --lookup {word} --max-new-tokens 2",
    "ask {text} --budget {whole} --memory-cap {whole} --threads {threads} --max-new-tokens 2",
    "documents list --home {folder} --device {word} --h2o {word}",
)  # fmt: skip
COMMANDS = {line.partition(" ")[0] for line in LINES}
VARIABLE = "documents list"  # under a wrong environment variable
SETUP = ("setup", "--torch", "--with", "--reinstall", "--no-venv", "help", "--torch=x", "cpu", "--with=", "setup=1")


class Words:
    """Right and wrong words of a world's command lines."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng

    def right(self, slot: str) -> str:
        """A word that the slot takes."""
        world, book = self.world, self.world.files / "book.txt"
        plain = {
            "document": book, "text": "word1", "word": "all", "id": world.document, "chat": world.chat,
            "spec": "book#1", "passage": world.passage, "number": "0.5", "numbers": "0.5", "whole": "1", "few": "2",
            "length": "200", "lengths": "200", "form": "md", "out": world.files / "out.md", "extra": "--json",
            "copy": "--empty", "folder": world.files, "model": world.model, "adapter": world.adapter, "threads": "1",
        }  # fmt: skip
        if slot in plain:
            return str(plain[slot])
        made = {"talk": world.exported, "questions": lambda: QUESTION, "recipe": lambda: RECIPE}
        return str(self._written(slot, made[slot]() if slot in made else {}))

    def wrong(self, slot: str) -> str:
        """A word that it does not take, mostly."""
        rng = self.rng
        numbers, texts = values.NUMBERS, values.TEXTS
        if slot in ("number", "whole", "few", "length", "threads"):
            return rng.choice(numbers)
        if slot == "port":
            return rng.choice(("-1", "70000", "x", "", "nan", "9" * 30, values.HALF, "1.5"))
        if slot in ("lengths", "numbers"):
            return ",".join(rng.choices((*numbers[:-1], "200"), k=rng.randint(1, 3)))
        if slot in ("id", "chat", "passage", "spec", "copy", "text", "word", "form", "extra"):
            return rng.choice(texts)
        if slot in ("talk", "questions", "recipe") and rng.random() < 0.75:
            made = {"talk": self.world.exported(), "questions": QUESTION, "recipe": RECIPE}[slot]
            return str(self._written(slot, values.broken(made, rng)))
        if slot in ("model", "adapter") and rng.random() < 0.75:
            return str(self._damaged(self.world.model if slot == "model" else self.world.adapter))
        if rng.random() < 0.2:
            return rng.choice(texts)
        return str(values.wrong_file(self.world.files, rng))

    def _written(self, slot: str, value: Any) -> Path:
        """A file of a slot's kind that holds a value."""
        files = self.world.files
        if slot == "recipe":
            talks = self.rng.choice((TALK, TALK, values.broken(TALK, self.rng)))
            (files / "talks.jsonl").write_bytes(values.as_json(talks) + b"\n")
            if not (files / "model").exists():
                (files / "model").symlink_to(self.world.model)
            data = values.as_toml(value) if isinstance(value, dict) else values.as_json(value)
            return _put(files / "recipe.toml", data)
        name = {"talk": "chat.json", "questions": "qa.jsonl"}[slot]
        return _put(files / name, values.as_json(value) + b"\n")

    def _damaged(self, whole: Path) -> Path:
        """A copy of a folder of a model with one file of it wrong or gone."""
        import json
        import shutil

        folder = self.world.files / f"damaged{self.rng.randrange(10**6)}"
        shutil.copytree(whole, folder)
        file = self.rng.choice(sorted(folder.iterdir()))
        if file.suffix == ".json" and file.stat().st_size < 50_000 and self.rng.random() < 0.7:
            file.write_bytes(values.as_json(values.broken(json.loads(file.read_text(encoding="utf-8")), self.rng)))
        elif self.rng.random() < 0.2:
            file.unlink()
        else:
            data = file.read_bytes()
            file.write_bytes(self.rng.choice((values.content(self.rng), data[: len(data) // 2])))
        return folder


def _put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def lines(world: World, rng: random.Random) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Command lines without end, each with the environment that it runs in; every command in turn."""
    words = Words(world, rng)
    names = [field.name.upper() for field in fields(Settings)]
    while True:
        for line in rng.sample(LINES, len(LINES)):
            world.fresh()
            yield _filled(line, words), {}
        for _ in range(4):
            world.fresh()
            yield shlex.split(VARIABLE), {f"LECTERN_{rng.choice(names)}": rng.choice((*values.TEXTS, *values.NUMBERS))}


def _filled(line: str, words: Words) -> list[str]:
    """The line with one or more wrong slots; now and then the line itself is malformed."""
    rng = words.rng
    parts = line.split(" ")
    slots = [place for place, part in enumerate(parts) if part.startswith("{")]
    wrong = set(rng.sample(slots, rng.randint(1, min(2, len(slots)))))
    filled = [
        (words.wrong if place in wrong else words.right)(part.strip("{}")) if place in slots else part
        for place, part in enumerate(parts)
    ]
    what = rng.random()
    if what < 0.08:
        filled.insert(rng.randrange(len(filled) + 1), rng.choice(("--nope", "--json=1", "-d", "--", "--home", "-h=1")))
    elif what < 0.14:
        filled.pop(rng.randrange(len(filled)))
    elif what < 0.2:
        filled.append("--json")
    serves = "serve" in filled or not COMMANDS.intersection(filled)  # a line without a command opens the page
    return ["serve", "--port", "x"] if serves and "--port" not in filled else filled


def run(world: World, line: list[str], variables: dict[str, str]) -> tuple[str, int, str]:
    """(the line, its exit code, all that was said) of a command line in this process."""
    from app import cli

    out, kept = io.StringIO(), dict(os.environ)
    os.environ |= {"LECTERN_MODEL": str(world.model), "LECTERN_HOME": str(world.home)} | {
        name: _settable(text) for name, text in variables.items()
    }
    here = Path.cwd()
    os.chdir(world.files)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = cli.main(line)
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(kept)
    return f"{variables or ''} {line!r}", code, out.getvalue()


def _settable(text: str) -> str:
    """The text as an environment can hold it: no null, and half characters only where they stand for a byte."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        text = whole(text)
    return text.replace("\0", "")


def setup_line(rng: random.Random) -> list[str]:
    """A command line of the set-up that has to be refused or asks for nothing."""
    return rng.choices((*SETUP, *values.TEXTS), k=rng.randint(1, 3))


def refused_setup(line: list[str]) -> str:
    """What the set-up says of a line; it is taken apart only, nothing is installed."""
    from app.setup import commands

    split: Callable[..., Any] = commands.split
    try:
        return str(split(line))
    except ValueError as error:
        return str(error)
