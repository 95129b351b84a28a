"""The commands of `python launch.py`, for its --help and for the parser of app.cli. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

EXTRAS = ("ocr", "ray")  # packages that not everyone needs: requirements-NAME.txt

COMMANDS: dict[str, str] = {
    "serve": "open Lectern in the browser, on this computer only (the default)",
    "setup": "make or repair the environment and stop (--reinstall: from nothing; --with ocr or ray: extras)",
    "doctor": "say what Lectern found: Python, torch, GPU, data folder, disk, store, model",
    "test": "run the tests, three at a time (--quick: without the slow ones); what follows goes to pytest",
    "read": "read documents: PDF, e-books, office files, web pages, notebooks, text, a folder or .zip of code",
    "text": "show what ingestion makes of a file; nothing is stored",
    "ask": "ask a question, about documents or in a chat",
    "evidence": "test how much an answer rests on a passage that it looked at",
    "documents": "list, show, search, pin, evict or delete documents",
    "chats": "list, show, fork, edit, export, import or delete chats",
    "store": "stats: what the store holds; verify: check it; compact: give space back; restore: a lost library",
    "key": "show the key that other programs need for the endpoint (--new: make another)",
    "users": "list, add or remove users of the endpoint, each with a key, a library and limits of their own",
    "eval": "measure the model: passkey, needles, perplexity, qa; questions: make a file for qa",
    "train": "tune a model by a recipe, or make one from texts",
    "samples": "make long samples to train on from documents",
    "merge": "write an adapter and its base as one plain checkpoint",
    "fetch": "get the base of the model that ships with pip, once; the first start does it too",
    "models": "list the models on this computer; add or remove a folder to look in",
    "inspect": "say what a checkpoint or adapter is, and whether Lectern can use it",
}

_HELP = """\
Lectern: chat with whole books and whole codebases, the language model inside.

usage: python launch.py [command] [options]

{commands}

Every command takes --help. Everywhere:
  --home FOLDER         data folder (default: the user-data folder, or LECTERN_HOME)
  --model FOLDER|FILE|ID  checkpoint, GGUF file or hub id (default: lectern-reader)
  --adapter FOLDER      LoRA adapter, merged at load
  --download            allow fetching the model from the hub; nothing else leaves this computer
  --policy NAME         what later tokens attend to: keep-all, bounded, h2o, streaming, infllm, full
  --kv-codec NAME       how memories are kept: raw, int8, int4
  --device auto|cpu|cuda
  --threads N           CPU threads of the model
  --json                one JSON object as the last line; messages go to stderr

Set-up, before the command or after `setup`:
  --torch cpu|cuda      which build of torch to install
  --no-venv             use the running Python's packages (containers)
  TORCH_COMMAND         environment variable: the command that installs torch"""


def help_text() -> str:
    """What `python launch.py --help` prints."""
    width = max(map(len, COMMANDS))
    return _HELP.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))


@dataclass(frozen=True)
class Request:
    """A command line, split between launch.py and the command.

    Attributes:
        command: "setup" and "test" are launch.py's own; None when an option of app.cli comes first.
        rest: arguments handed on, the command among them except for `test`.
        help: the overview is wanted.
        asks_help: --help stands among the command's own arguments.
    """

    command: str | None
    rest: tuple[str, ...]
    help: bool = False
    no_venv: bool = False
    torch: str | None = None
    reinstall: bool = False
    extras: tuple[str, ...] = ()

    @property
    def asks_help(self) -> bool:
        return "--help" in self.rest or "-h" in self.rest


def test_arguments(rest: Sequence[str]) -> list[str]:
    """What pytest gets for `test`: three processes for the whole suite, one where something of it is named.

    Three, for a third of the time a process waits: for a browser, a server, the end of a thread.

    Whole runs of benchmark scripts are left out unless something is named: they test the scripts, not what is promised.
    `--quick` leaves out what is marked slow too, for a look after each change.
    """
    words = [word for word in rest if word != "--quick"]
    named = any(not word.startswith("-") for word in words)
    without = [*(["bench"] if not named else []), *(["slow"] if len(words) < len(rest) else [])]
    chosen = ["-m", " and ".join(f"not {mark}" for mark in without)] if without else []
    return [*([] if named else ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]), *chosen, *words]


def split(argv: Sequence[str]) -> Request:
    """Take launch.py's own options off the front of a command line.

    Raises:
        ValueError: an option of the set-up that cannot be used; the message is for the user.
    """
    values: dict[str, Any] = {"no_venv": False, "torch": None, "reinstall": False, "extras": ()}
    arguments = list(argv)
    command: str | None = None
    while arguments:
        word, _, value = arguments[0].partition("=")
        if command is None and word in ("-h", "--help", "help") or command == "setup" and word in ("-h", "--help"):
            return Request(None, (), help=True)
        if word == "--no-venv":
            values["no_venv"] = True
        elif word == "--torch":
            if not value and len(arguments) > 1:
                value = arguments.pop(1)
            if value not in ("cpu", "cuda"):
                raise ValueError(f"--torch {value}: choose cpu or cuda")
            values["torch"] = value
        elif word == "--reinstall" and command == "setup":
            values["reinstall"] = True
        elif word == "--with" and command == "setup":
            if not value and len(arguments) > 1:
                value = arguments.pop(1)
            if value not in EXTRAS:
                raise ValueError(f"--with {value}: choose {' or '.join(EXTRAS)}")
            values["extras"] = (*values["extras"], value)
        elif command == "setup":
            raise ValueError(f"setup {arguments[0]}: not known; setup takes --reinstall, --with, --torch and --no-venv")
        elif word == "setup":
            command = "setup"
        else:
            break
        arguments.pop(0)
    if command is None and arguments and not arguments[0].startswith("-"):
        command = arguments[0]
    if command == "test":
        arguments.pop(0)
    return Request(command, tuple(arguments), **values)
