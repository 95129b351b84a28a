"""The command line: its commands and flags. Imports nothing heavy, so that --help is instant."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from app.cli import (
    ask,
    chats,
    documents,
    eval,
    evidence,
    models,
    serve,
    store,
    users,
)
from app.cli.train import samples, train
from app.errors import ConfigError
from app.settings import H2O_PRESETS, KV_CODECS, LOOKUPS, POLICIES, WEIGHTS
from app.setup.commands import COMMANDS

MOST = 2**31  # of what is counted: tokens, questions, megabytes


def _whole(text: str) -> int:
    """A whole number of a size that something can have."""
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a whole number") from error
    if abs(value) >= MOST:
        raise argparse.ArgumentTypeError(f"{text:.40} is too large; give less than {MOST:,}")
    return value


def _count(text: str) -> int:
    """A whole number from 1."""
    if (value := _whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text:.40} is not a number from 1")
    return value


# flag, its name in Settings, what it says
SETTINGS = (
    ("--home", "home", {"metavar": "FOLDER", "help": "data folder"}),
    ("--model", "model", {"metavar": "FOLDER|FILE|ID", "help": "checkpoint: a folder, a GGUF file, or a hub id"}),
    ("--adapter", "adapter", {"metavar": "FOLDER", "help": "LoRA adapter, merged at load"}),
    ("--download", "download", {"action": "store_true", "help": "allow fetching the model from the hub"}),
    ("--policy", "policy", {"metavar": "NAME", "help": f"what later tokens attend to: {', '.join(POLICIES)}"}),
    ("--h2o", "h2o", {"metavar": "NAME", "help": f"which tokens h2o and bounded keep: {', '.join(H2O_PRESETS)}"}),
    ("--memory-cap", "memory_cap_mb", {"metavar": "MB", "type": _whole, "help": "what a text may take under bounded"}),
    ("--budget", "budget_tokens", {"metavar": "TOKENS", "type": _whole, "help": "tokens one query may attend to"}),
    ("--kv-codec", "kv_codec", {"metavar": "NAME", "help": f"how memories are kept: {', '.join(KV_CODECS)}"}),
    ("--lookup", "lookup", {"metavar": "NAME", "help": f"what finds an answer's passages: {', '.join(LOOKUPS)}"}),
    ("--weights", "weights", {"metavar": "NAME", "help": f"weights on a CPU are kept in: {', '.join(WEIGHTS)}"}),
    ("--device", "device", {"metavar": "auto|cpu|cuda", "help": "where the model runs"}),
    ("--threads", "threads", {"metavar": "N", "type": _whole, "help": "CPU threads of the model"}),
)
SWITCHES = ("--download", "--json")
VALUES = tuple(flag for flag, _, options in SETTINGS if "action" not in options)


class Parser(argparse.ArgumentParser):
    """Tells usage errors as ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def settings_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Values of the flags that were given, by their names in Settings."""
    return {name: getattr(args, name, None) for _, name, _ in SETTINGS}


def with_default(argv: Sequence[str]) -> list[str]:
    """Put `serve` where no command stands."""
    index = 0
    while index < len(argv):
        word = argv[index]
        if word in VALUES:
            index += 2
        elif word in SWITCHES or word.split("=")[0] in VALUES:
            index += 1
        elif word in ("-h", "--help") or not word.startswith("-"):
            return list(argv)
        else:
            break
    return ["serve", *argv]


def _common() -> argparse.ArgumentParser:
    """Flags that stand before or after the command; those not given leave no trace."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    group = common.add_argument_group("everywhere")
    for flag, name, options in SETTINGS:
        group.add_argument(flag, dest=name, **options)
    group.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    return common


class _Commands:
    """Adds commands that carry the common flags."""

    def __init__(self, parser: Parser, common: argparse.ArgumentParser) -> None:
        required = parser.get_default("run") is None
        self._added = parser.add_subparsers(title="commands", metavar="COMMAND", required=required)
        self._common = common

    def add(self, name: str, help: str, run: Callable[..., Any] | None = None) -> Parser:
        parser = self._added.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", parents=[self._common], allow_abbrev=False
        )
        if run is not None:
            parser.set_defaults(run=run)
        return parser

    def group(self, name: str, help: str, run: Callable[..., Any] | None = None) -> "_Commands":
        """A command with commands of its own; `run` is what it does without one."""
        return _Commands(self.add(name, help, run), self._common)


def parser() -> Parser:
    """The whole command line."""
    common = _common()
    root = Parser(prog="launch.py", parents=[common], allow_abbrev=False, description="Chat with whole books.")
    commands = _Commands(root, common)
    page = commands.add("serve", COMMANDS["serve"], serve.serve)
    page.add_argument("--port", type=_whole, metavar="N", help="port; the first free one from 7860 when not given")
    page.add_argument("--no-browser", dest="browser", action="store_false", help="do not open a browser")
    page.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen there: for programs with a key")
    page.add_argument("--certificate", type=Path, metavar="FILE", help="PEM certificate, with --host")
    page.add_argument("--certificate-key", type=Path, metavar="FILE", help="its key")
    page.add_argument("--behind-proxy", action="store_true", help="another program does TLS")
    page.add_argument("--replicas", type=_count, metavar="N", help="so many replicas over Ray (setup --with ray)")
    page.add_argument("--ray", metavar="HOST:PORT", help="a Ray cluster that runs; without it, Ray is started here")
    _users(commands.group("users", COMMANDS["users"], users.users_list))
    commands.add("doctor", COMMANDS["doctor"], serve.doctor)
    key = commands.add("key", COMMANDS["key"], serve.key)
    key.add_argument("--new", action="store_true", help="make another one; the old one opens nothing any more")
    _library(commands)
    _talk(commands)
    _measure(commands.group("eval", COMMANDS["eval"]))
    tune = commands.add("train", COMMANDS["train"], train)
    tune.add_argument("recipe", type=Path, metavar="RECIPE", help="TOML file with a table [tune] or [pretrain]")
    tune.add_argument("--run", dest="run_folder", type=Path, metavar="FOLDER", help="checkpoints and caches")
    tune.add_argument("--out", type=Path, metavar="FOLDER", help="[tune]: where the adapter goes")
    tune.add_argument("--base", metavar="FOLDER|FILE", help="[tune]: checkpoint or GGUF file to start from")
    tune.add_argument("--data", type=Path, metavar="FOLDER", help="[pretrain]: folder with books/, qa/ and code/")
    tune.epilog = (
        "A [tune] recipe names the base, attention, length, steps, what learns and the files: app/train/recipes has "
        "two to begin with, docs/training.md every key. The same command again goes on with a run that was stopped."
    )
    _samples(commands.add("samples", COMMANDS["samples"], samples))
    merge = commands.add("merge", COMMANDS["merge"], models.merge)
    merge.add_argument("path", type=Path, metavar="ADAPTER", help="folder of a LoRA adapter")
    merge.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the checkpoint goes")
    merge.add_argument("--base", type=Path, metavar="FOLDER", help="its base, when that is not where it says")
    merge.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="of the weights; the base's")
    merge.add_argument(
        "--trained-tokens", type=_whole, metavar="N", help="length it was trained on, when it does not say (LongLoRA)"
    )
    merge.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    known = commands.group("models", COMMANDS["models"], models.models_list)
    known.add("list", "list checkpoints and adapters", models.models_list)
    for name, text, run in (
        ("add", "look for models in a folder from now on", models.models_add),
        ("remove", "look no more in a folder that was added", models.models_remove),
    ):
        known.add(name, text, run).add_argument("folder", metavar="FOLDER", help="a folder with models in it")
    commands.add("fetch", COMMANDS["fetch"], models.fetch)
    look = commands.add("inspect", COMMANDS["inspect"], models.inspect)
    look.add_argument("path", type=Path, metavar="PATH", help="folder of a checkpoint or of an adapter")
    look.add_argument("--base", type=Path, metavar="FOLDER", help="an adapter's base, when it is not where it says")
    return root


def _samples(command: Parser) -> None:
    command.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a text, PDF, folder or .zip; .xz too")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to: a .jsonl or .jsonl.xz file")
    command.add_argument("--count", type=_whole, default=100, metavar="N", help="samples (100)")
    command.add_argument("--lengths", type=_numbers, metavar="L,L", help="tokens of a sample, in turn (4096)")
    command.add_argument("--depths", type=_depths, metavar="D,D", help="where answers stand (0.1,0.3,0.5,0.7,0.9)")
    command.add_argument("--kinds", type=_words, metavar="K,K", help="kinds of questions (all; see docs/cli.md)")
    command.add_argument("--turns", type=_whole, default=3, metavar="N", help="most questions in a sample (3)")
    command.add_argument("--validation", type=float, default=0.0, metavar="SHARE", help="kept for validation (0)")
    command.add_argument("--layout", choices=("app", "chat"), default="app", help="where the document stands (app)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draw")
    command.add_argument("--force", action="store_true", help="replace files that are there")


def _users(group: _Commands) -> None:
    group.add("list", "list who has a key, and their limits", users.users_list)
    add = group.add("add", "make a key for somebody, who has a library of their own", users.users_add)
    add.add_argument("--documents", type=_whole, default=200, metavar="N", help="in the library, at most (200)")
    add.add_argument("--gigabytes", type=float, default=2.0, metavar="G", help="of documents, and of memories (2)")
    add.add_argument(
        "--tokens-per-minute", type=_whole, default=200_000, metavar="N", help="read and said, at most (200000)"
    )
    add.add_argument("--answers", type=_whole, default=2, metavar="N", help="at the same time, at most (2)")
    for parser in (add, group.add("remove", "take the key away and delete the library", users.users_remove)):
        parser.add_argument("name", metavar="NAME", help="small letters and digits")


def _library(commands: _Commands) -> None:
    read = commands.add("read", COMMANDS["read"], documents.read)
    read.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, folder or .zip")
    read.add_argument("--password", metavar="P", help="password of an encrypted PDF")
    read.add_argument("--encoding", metavar="E", help="encoding of a text, such as cp1251; without it, found")
    read.add_argument("--ocr", action="store_true", help="read scanned pages of PDFs by OCR (setup --with ocr)")
    read.add_argument("--ray", action="store_true", help="read all files of folders over Ray (setup --with ray)")
    read.add_argument("--cluster", metavar="HOST:PORT", help="a Ray cluster that runs, with --ray")
    read.add_argument("--workers", type=_count, metavar="N", help="files at a time, with --ray; one for each core")
    text = commands.add("text", COMMANDS["text"], documents.text)
    text.add_argument("path", type=Path, metavar="PATH", help="a file, folder or .zip")
    text.add_argument("--password", metavar="P", help="password of an encrypted PDF")
    text.add_argument("--encoding", metavar="E", help="encoding of a text, such as cp1251; without it, found")
    text.add_argument("--ocr", action="store_true", help="read scanned pages of PDFs by OCR (setup --with ocr)")
    group = commands.group("documents", COMMANDS["documents"], documents.documents_list)
    group.add("list", "list the library", documents.documents_list)
    _one(group.add("show", "show one document", documents.documents_show), "a document")
    _one(group.add("delete", "delete a document and its memory", documents.documents_delete), "a document")
    _one(group.add("pin", "keep the memory of a document on the disk", documents.documents_pin), "a document")
    _one(group.add("unpin", "let the memory go when room is needed", documents.documents_unpin), "a document")
    _one(group.add("evict", "delete the memory, not the document", documents.documents_evict), "a document")
    search = group.add("search", "find words in the text of the library", documents.documents_search)
    search.add_argument("words", nargs="+", metavar="WORD", help='words, or "a phrase"')
    search.add_argument("-d", "--document", metavar="DOCUMENT", help="in this document only")
    search.add_argument("--limit", type=_whole, default=20, metavar="N", help="places to show (20)")
    whole = commands.group("store", COMMANDS["store"])
    whole.add("stats", "say what the data folder holds", store.store_stats)
    whole.add("verify", "check every stored block", store.store_verify)
    whole.add("compact", "delete what nothing names any more and give the space back", store.store_compact)
    restore = whole.add("restore", "put a copy of the library in its place", store.store_restore)
    restore.add_argument("copy", nargs="?", metavar="COPY", help="file name in the data folder; the newest sound copy")
    restore.add_argument("--empty", action="store_true", help="begin with an empty library; copies get other names")


def _talk(commands: _Commands) -> None:
    question = commands.add("ask", COMMANDS["ask"], ask.ask)
    question.add_argument("question", metavar="QUESTION")
    repeat: dict[str, Any] = {"action": "append", "default": []}
    question.add_argument(
        "-d", "--document", metavar="DOCUMENT", help="document id or title; repeat for several", **repeat
    )
    question.add_argument("--chat", metavar="CHAT", help="go on in this chat")
    question.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (the default)")
    question.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens of this mass")
    question.add_argument("--seed", type=int, metavar="N", help="seed of the sampling")
    question.add_argument("--max-new-tokens", type=_whole, metavar="N", help="longest answer")
    question.add_argument("--focus", metavar="SPEC", help="look only there; repeat for several", **repeat)
    question.add_argument("--mute", metavar="SPEC", help="do not look there; repeat for several", **repeat)
    question.add_argument(
        "--everything", action="store_true", help="look in front matter and licences too, which are muted otherwise"
    )
    question.add_argument(
        "--through", action=argparse.BooleanOptionalAction, help="go through all of the text, part by part, or never"
    )
    question.add_argument("--without", metavar="EVIDENCE", help="answer with this passage hidden")
    _one(commands.add("evidence", COMMANDS["evidence"], evidence.evidence), "a passage, such as e12-1")
    many = commands.group("chats", COMMANDS["chats"], chats.chats_list)
    many.add("list", "list chats", chats.chats_list).add_argument("--search", metavar="TEXT", help="holding this text")
    _one(many.add("show", "show the turns of a chat", chats.chats_show), "a chat")
    _one(many.add("delete", "delete a chat", chats.chats_delete), "a chat")
    attach = _one(many.add("attach", "attach documents to a chat", chats.attach), "a chat")
    detach = _one(many.add("detach", "detach documents from a chat", chats.detach), "a chat")
    for command in (attach, detach):
        command.add_argument("documents", nargs="+", metavar="DOCUMENT", help="document id or title")
    _branches(many)
    export = _one(many.add("export", "write a chat into a file", chats.chats_export), "a chat")
    export.add_argument("--output", type=Path, metavar="FILE", help="where to; stdout when not given")
    export.add_argument("--format", choices=chats.FORMATS, help="md, json, or lectern: with documents and memory")
    take = many.add("import", "take in a chat that was exported", chats.chats_import)
    take.add_argument("path", type=Path, metavar="FILE", help="a .lectern or .json file")
    take.add_argument("--text-only", action="store_true", help="leave the memory out; documents are read again")


def _branches(many: _Commands) -> None:
    fork = _one(many.add("fork", "begin a new chat as this one stood after a turn", chats.chats_fork), "a chat")
    fork.add_argument(
        "--turn", type=_whole, metavar="N", help="last turn to take over; 0: documents only; all if not given"
    )
    edit = _one(many.add("edit", "ask another question in the place of an earlier one", chats.chats_edit), "a chat")
    edit.add_argument("turn", type=_whole, metavar="TURN", help="which question, counted from 1")
    edit.add_argument("question", metavar="QUESTION")
    edit.add_argument("--max-new-tokens", type=_whole, metavar="N", help="longest answer")


def _measure(evals: _Commands) -> None:
    passkey = evals.add("passkey", "hide numbers in long texts and ask for them", eval.passkey)
    _lengths(passkey)
    passkey.add_argument("--trials", type=_whole, default=20, metavar="N", help="questions per length (20)")
    passkey.add_argument("--per-reading", type=_whole, default=1, metavar="K", help="numbers in one text (1)")
    passkey.add_argument("--distractors", type=_whole, default=0, metavar="N", help="other keys in it, never asked (0)")
    passkey.add_argument("--one-text", action="store_true", help="move the key through one text: half the reading")
    _filler(passkey, "repeat")
    needles = evals.add("needles", "hide facts of several kinds in long texts and ask for them", eval.needles)
    needles.add_argument("--task", type=_words, default=["multi-key"], metavar="T,T", help="what is hidden (multi-key)")
    _lengths(needles)
    needles.add_argument("--trials", type=_whole, default=20, metavar="N", help="questions per task and length (20)")
    needles.add_argument(
        "--per-reading", type=_whole, default=5, metavar="K", help="facts of a task asked in one text (5)"
    )
    needles.add_argument("--second", type=_whole, metavar="N", help="of those, asked again as a second question (half)")
    needles.add_argument("--distractors", type=_whole, default=0, metavar="N", help="other facts in it, not asked (0)")
    _filler(needles, "prose")
    perplexity = evals.add("perplexity", "measure how well a text is predicted", eval.perplexity)
    perplexity.add_argument("--file", type=Path, required=True, metavar="F", help="the text")
    _lengths(perplexity)
    perplexity.add_argument("--counted", type=_whole, metavar="N", help="tokens that count at the end of each window")
    perplexity.add_argument("--windows", type=_whole, default=4, metavar="N", help="places in the text (4)")
    qa = evals.add("qa", "ask the questions of a file", eval.qa)
    qa.add_argument("--file", type=Path, required=True, metavar="F", help="JSON lines with text and qas; .xz too")
    qa.add_argument("--limit", type=_whole, metavar="N", help="draw this many questions; all when not given")
    qa.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draw and of the places")
    qa.add_argument("--haystack", type=Path, metavar="TEXT", help="plant the texts among the lines of this one")
    qa.add_argument("--tokens", type=_whole, metavar="N", help="length of a reading with a haystack")
    qa.add_argument("--per-reading", type=_whole, default=10, metavar="K", help="texts planted in one reading (10)")
    qa.add_argument("--second", type=_whole, default=0, metavar="N", help="of those, again as a second question (0)")
    qa.add_argument("--save", type=Path, metavar="FILE", help="write every answer there as JSON lines")
    made = evals.add("questions", "make a file for eval qa from question sets", eval.questions)
    made.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder with qa/, as for train")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="where they go; .xz packs them")
    made.add_argument("--count", type=_whole, default=300, metavar="N", help="how many, each about another text (300)")
    made.add_argument("--unanswerable", type=float, default=1 / 6, metavar="SHARE", help="without an answer (1/6)")
    made.add_argument("--longest", type=_whole, default=3500, metavar="CHARS", help="no text longer than this (3500)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="another draw")
    made.add_argument("--force", action="store_true", help="replace a file that is there")


def _filler(command: Parser, default: str) -> None:
    command.add_argument("--filler", choices=("repeat", "prose"), default=default, help=f"the text around ({default})")
    command.add_argument(
        "--filler-file", type=Path, metavar="F", help="prose to fill with; the sample book if not given"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of facts, names and places")


def _lengths(command: Parser) -> None:
    either = command.add_mutually_exclusive_group()
    either.add_argument("--lengths", type=_numbers, metavar="L,L", help="tokens of the texts")
    either.add_argument("--times-trained", type=_numbers, metavar="N,N", help="lengths as multiples of the trained one")


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(re.fullmatch("0*[1-9][0-9]*", word.strip()) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a list of positive numbers such as 2048,8192")
    return [_whole(word) for word in words]


def _depths(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.1,0.5,0.9") from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _one(command: Parser, what: str) -> Parser:
    command.add_argument("id", metavar="ID", help=f"id of {what}")
    return command
