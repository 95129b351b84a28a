"""Rule files of git: what `.gitignore` and `.gitattributes` files say about the paths of a tree."""

import configparser
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pathspec

MAX_RULES = 10_000  # of one file
LONGEST_RULE_CHARS = 1_000
MOST_FOLDER_MARKS = 4  # `**` of a rule: each tries every folder
_STAR = r"[^/]*"
_LETTER = r"\\.|\[\^/\](?!\*)|(?!\[\^/\])\[(?:\\.|[^\]\\])+\]|[^/()|$\[\\]"  # or one of a choice, or any
_CHUNK = re.compile(rf"{re.escape(_STAR)}((?:{_LETTER})+)(?={re.escape(_STAR)})")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
GENERATED, VENDORED = "linguist-generated", "linguist-vendored"
LONGEST_FILE_BYTES = 1 << 20


class Rules:
    """The rules of one file.

    Attributes:
        unused: lines that would take too long to match, or are too many.
    """

    def __init__(self, lines: list[str]) -> None:
        self._patterns: list[pathspec.RegexPattern] = []
        self.unused: list[str] = []
        for number, line in enumerate(lines):
            if number >= MAX_RULES:
                self.unused.append(f"{len(lines) - number:,} more than {MAX_RULES:,}")
                break
            if len(line) > LONGEST_RULE_CHARS or line.count("**") > MOST_FOLDER_MARKS:
                self.unused.append(line[:60])
                continue
            try:
                found = pathspec.GitIgnoreSpec.from_lines([line]).patterns
            except (ValueError, re.error):  # git could not use it either
                continue
            self._patterns += [_quick(pattern) for pattern in found if pattern.include is not None]
        self._spec = pathspec.GitIgnoreSpec(self._patterns)

    def check(self, path: str) -> bool | None:
        """Whether the last rule that matches names a path (a folder's ends in "/") or takes it out; None: none does."""
        return self._spec.check_file(path).include

    def check_itself(self, path: str) -> bool | None:
        """As `check`, but a rule that names a folder says nothing of what is in it: so are attributes given."""
        for pattern in reversed(self._patterns):
            found = pattern.regex.match(path)
            if found and (not found.groupdict().get("ps_d") or found.end() == len(path)):
                return pattern.include
        return None

    def without_those_of(self, path: str) -> "Rules":
        """The rules that do not name this folder, nor one that it lies in."""
        outer = [path[: at + 1] for at, char in enumerate(path) if char == "/"]
        rules = Rules([])
        rules.unused = self.unused
        rules._patterns = [
            pattern
            for pattern in self._patterns
            if not pattern.include or not any(pattern.match_file(folder) for folder in outer)
        ]
        rules._spec = pathspec.GitIgnoreSpec(rules._patterns)
        return rules


def ignore_rules(text: str) -> Rules:
    """What a `.gitignore` file says."""
    return Rules([line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")])


def attribute_rules(text: str, attribute: str) -> Rules:
    """Which paths a `.gitattributes` file gives an attribute, as rules: those that lose it again begin with "!"."""
    lines = []
    for line in text.removeprefix("\ufeff").split("\n"):
        quoted = _QUOTED.match(line.strip())
        pattern, _, rest = (quoted[1], "", line.strip()[quoted.end() :]) if quoted else line.strip().partition(" ")
        if not quoted and "\t" in pattern:
            pattern, _, rest = line.strip().partition("\t")
        if not pattern or pattern.startswith(("#", "[attr]", "!")):
            continue
        for word in rest.split():
            name, _, value = word.lstrip("-!").partition("=")
            if name == attribute:
                off = word[0] in "-!" or value in ("false", "0")
                lines.append(f"!{pattern}" if off else pattern)
    return Rules(lines)


class RuleTree:
    """Rules of one kind of a whole tree: the last that matches decides, those of deeper folders last, as in git."""

    def __init__(self, *, attribute: str = "") -> None:
        self._attribute = attribute
        self._above: list[tuple[str, Rules]] = []
        self._at: dict[str, Rules] = {}
        self.unused: list[tuple[str, str]] = []  # (rule file, rule)

    def add(self, folder: str, text: str, file: str) -> None:
        """Rules for everything under `folder` ("" is the root), read from `file`."""
        self._at[folder] = self._rules(text, file)

    def add_above(self, path: str, text: str, file: str) -> bool:
        """Rules of a folder above the root, which lies in `path` ("a/b/") of it; True if they name the root itself.

        Such rules are left out: the user chose to read it. The others hold.
        """
        rules = self._rules(text, file)
        names_root = bool(path) and not self._attribute and rules.check(path) is True
        self._above.append((path, rules.without_those_of(path) if names_root else rules))
        return names_root

    def _rules(self, text: str, file: str) -> Rules:
        rules = attribute_rules(text, self._attribute) if self._attribute else ignore_rules(text)
        self.unused += [(file, rule) for rule in rules.unused]
        return rules

    def names(self, path: str) -> bool:
        """Whether the rules name a path."""
        decision = False
        for above, rules in self._above:
            matched = self._check(rules, above + path)
            decision = decision if matched is None else matched
        folder, names = "", path.rstrip("/").split("/")
        for depth in range(len(names)):
            rules = self._at.get(folder)
            if rules is not None:
                matched = self._check(rules, path[len(folder) + 1 :] if folder else path)
                decision = decision if matched is None else matched
            folder = "/".join(names[: depth + 1])
        return decision

    def _check(self, rules: Rules, path: str) -> bool | None:
        return rules.check_itself(path) if self._attribute else rules.check(path)


def top_of(place: Path) -> Path | None:
    """The folder with `.git` that a place lies in."""
    return next((folder for folder in (place, *place.parents) if (folder / ".git").exists()), None)


def files_above(top: Path, root: Path, name: str, info: str) -> Iterator[tuple[str, Path]]:
    """(path of the root from there, rule file) of the folders of a repository above the root; `info/` comes first."""
    inside = [top, *reversed([folder for folder in root.parents if folder.is_relative_to(top) and folder != top])]
    yield path_from(top, root), git_folder(top) / "info" / info
    for folder in inside:
        if folder != root:
            yield path_from(folder, root), folder / name


def path_from(folder: Path, root: Path) -> str:
    path = root.relative_to(folder).as_posix()
    return "" if path == "." else f"{path}/"


def git_folder(top: Path) -> Path:
    """Where a repository keeps its own files; `.git` of a worktree or submodule is a file that says where."""
    place = top / ".git"
    if place.is_file():
        place = top / read_rules(place).removeprefix("gitdir:").strip()
        common = read_rules(place / "commondir").strip()
        place = place / common if common else place
    return place


def global_ignore() -> Path | None:
    """The user's own ignore file for all repositories: `core.excludesFile`, else git's usual place."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    own = os.environ.get("GIT_CONFIG_GLOBAL")
    chosen = ""
    for place in [own] if own else [os.path.join(home, "git", "config"), os.path.expanduser("~/.gitconfig")]:
        config = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True, delimiters=("=",))
        try:
            config.read_string("\n".join(line.strip() for line in read_rules(Path(place)).split("\n")))
            chosen = config.get("core", "excludesfile", fallback="") or chosen
        except configparser.Error:
            continue
    path = Path(os.path.expanduser(chosen.strip('"')) if chosen else os.path.join(home, "git", "ignore"))
    return path if path.is_file() else None


def read_rules(path: Path) -> str:
    """A rule file's text; "" of one that cannot be read, which is listed when its turn comes."""
    try:
        with open(path, "rb") as file:
            return file.read(LONGEST_FILE_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def _quick(pattern: pathspec.RegexPattern) -> pathspec.RegexPattern:
    """The same pattern, whose stars do not try again what cannot help: what stands between two stars is found first."""
    regex = _CHUNK.sub(lambda found: f"(?>[^/]*?{found[1]})", pattern.regex.pattern)
    return pattern if regex == pattern.regex.pattern else type(pattern)(re.compile(regex), pattern.include)
