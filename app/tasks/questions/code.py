"""Questions about source code: where names are defined, their arguments, values, modules and lines."""

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from app.tasks.questions.passage import TextQuestion, flat, shuffled

# A file begins as app/ingest/codebase.py heads it.
_HEADER = re.compile(r"^(?=\S*[./])([\w@.+/-]*\w) \(((?:[A-Z]|text)[\w+#. -]*)\)$", re.MULTILINE)
_PROSE = frozenset(("Markdown", "reStructuredText", "Text only", "text", "HTML", "TOML", "YAML", "JSON", "INI", "CSS"))
DEFINED = re.compile(
    r"^([ \t]*)(?:(?:export|default|public|private|protected|static|final|abstract|async|pub|open|inline) )*"
    r"(def|class|function|func|fn|struct|interface|trait|enum) ([A-Za-z_]\w*)",
    re.MULTILINE,
)
_SIGNATURE = re.compile(
    r"^[ \t]*(?:async )?def (\w+)\(([^()]{1,200}(?:\([^()]*\)[^()]*)*)\)(?: -> ([^:\n]{2,60}))?:$", re.MULTILINE
)
_CODE_LINE = re.compile(r"[;{}]$|^\s*(?:def|class|import|from|return|if|for|while|else)\b.*[:\w)]$")
_FUNCTIONS = ("def", "function", "func", "fn")
_CONSTANT = re.compile(r"^([A-Z][A-Z0-9_]{2,}) = ([^\s(\[{][^\n]{0,80}[^\s,(\[{\\])$", re.MULTILINE)
_IMPORT = re.compile(r"^from ([\w.]+) import (\w+)(?: as \w+)?$", re.MULTILINE)
_BASE = re.compile(r"^class (\w+)\(([\w.]+)\):", re.MULTILINE)
_DOCSTRING = re.compile(
    r"^[ \t]*(?:def|class) (\w+)(?:\((?:[^()]|\([^()]*\)){0,300}\))?(?: -> [^\n]{1,60})?:\n\s+"
    r'r?"""([^"\n]{15,160}[.!])(?:"""|\n)',
    re.MULTILINE,
)
_DUNDER = re.compile(r"__\w+__|main|run|test|setUp|tearDown|init|new|get|set")


class File(NamedTuple):
    """A file of a codebase; `path_at` is where its path stands in the header line."""

    path: str
    start: int
    end: int
    path_at: int
    language: str


class Definition(NamedTuple):
    """Where a function or class is defined; `owner` is the class around a method, as (name, start)."""

    name: str
    start: int
    kind: str
    owner: tuple[str, int] | None


class Code:
    """A codebase as one text, files headed by path and language; or the text of a single file."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def files(self) -> list[File]:
        heads = list(_HEADER.finditer(self.text))
        ends = [m.start() for m in heads[1:]] + [len(self.text)] * bool(heads)
        found = [File(m[1], m.end() + 1, end, m.start(1), m[2]) for m, end in zip(heads, ends, strict=True)]
        if not found or found[0].path_at > 0:  # a text may begin in the middle of a file
            end = found[0].path_at if found else len(self.text)
            found.insert(0, File("", 0, end, -1, "code" if _looks_like_code(self.text[:end]) else "text"))
        return found

    def in_code(self, place: int) -> File | None:
        """The file of code that a place lies in; None in prose and data."""
        found = next((f for f in self.files if f.start <= place < f.end), None)
        return found if found and found.language not in _PROSE else None

    @cached_property
    def definitions(self) -> list[Definition]:
        """Functions and classes, in order; a method knows its class by indentation."""
        found, classes = [], []
        for m in DEFINED.finditer(self.text):
            file = self.in_code(m.start())
            if file is None:
                continue
            indent = len(m[1])
            classes = [c for c in classes if c[0] < indent and c[3] == file.start]
            owner = (classes[-1][1], classes[-1][2]) if classes else None
            found.append(Definition(m[3], m.start(3), m[2], owner))
            if m[2] in ("class", "struct", "interface", "trait"):
                classes.append((indent, m[3], m.start(3), file.start))
        return found

    @cached_property
    def times(self) -> Counter[str]:
        """How many definitions bear a name."""
        return Counter(d.name for d in self.definitions)

    @property
    def single(self) -> list[Definition]:
        """Definitions whose name is given once."""
        return [d for d in self.definitions if self.times[d.name] == 1 and not _DUNDER.fullmatch(d.name)]

    def matches(self, rule: re.Pattern[str]) -> list[re.Match[str]]:
        """What a rule finds in code, where its first group names something found once."""
        found = [m for m in rule.finditer(self.text) if self.in_code(m.start())]
        times = Counter(m[1] for m in found)
        return [m for m in found if times[m[1]] == 1 and self.times[m[1]] <= 1 and not _DUNDER.fullmatch(m[1])]


def is_code(text: str) -> bool:
    """Whether a text is source code: it has file headers of code, or its lines look like code."""
    if any(m[2] not in _PROSE for m in _HEADER.finditer(text)):
        return True
    return _looks_like_code(text)


def _looks_like_code(text: str) -> bool:
    """Whether something is defined in a text and every sixth line is one of code."""
    lines = [line for line in text.splitlines() if line.strip()]
    looks = sum(bool(_CODE_LINE.search(line)) for line in lines)
    return bool(DEFINED.search(text)) and looks * 6 > len(lines)


def defined_in(code: Code, rng: random.Random) -> Iterator[TextQuestion]:
    """The file of a definition."""
    paths = Counter(file.path for file in code.files)
    for d in shuffled(rng, code.single):
        file = code.in_code(d.start)
        if len(paths) > 1 and file and file.path and paths[file.path] == 1:
            what = "function" if d.kind in _FUNCTIONS else d.kind
            question = rng.choice((f"Where is the {what} `{d.name}` defined?", f"Which file defines `{d.name}`?"))
            place = file.path_at, file.path_at + len(file.path)
            yield TextQuestion("defined_in", question, file.path, *place, ((d.start, d.start + len(d.name)),))


def method_of(code: Code, rng: random.Random) -> Iterator[TextQuestion]:
    """The class that has a method."""
    for d in shuffled(rng, code.single):
        if d.owner and d.kind in _FUNCTIONS:
            name, start = d.owner
            question = rng.choice(("Which class has the method `{}`?", "To which class does `{}` belong?")).format(
                d.name
            )
            places = ((d.start, d.start + len(d.name)),)
            yield TextQuestion("method_of", question, name, start, start + len(name), places)


def arguments(code: Code, rng: random.Random) -> Iterator[TextQuestion]:
    """What a function takes, or what it returns when that is annotated."""
    for m in shuffled(rng, code.matches(_SIGNATURE)):
        if m[3] and rng.random() < 0.4:
            question = f"Which type does `{m[1]}` return?"
            yield TextQuestion("arguments", question, flat(m[3]), *code_span(code, m, 3), (m.span(1),))
        elif 1 <= len(m[2].strip()) <= 120 and flat(m[2]) not in ("self", "cls"):
            question = rng.choice((f"Which arguments does `{m[1]}` take?", f"What are the parameters of `{m[1]}`?"))
            yield TextQuestion("arguments", question, flat(m[2]), *code_span(code, m, 2), (m.span(1),))


def code_span(code: Code, match: re.Match[str], group: int) -> tuple[int, int]:
    """Where a group stands, the blanks at its ends left out."""
    part = match[group]
    return match.start(group) + len(part) - len(part.lstrip()), match.end(group) - len(part) + len(part.rstrip())


def constant(code: Code, rng: random.Random) -> Iterator[TextQuestion]:
    """The value of a name in capitals."""
    for m in shuffled(rng, code.matches(_CONSTANT)):
        value = m[2].partition("  #")[0].rstrip()
        try:
            ast.parse(value, mode="eval")
        except SyntaxError:  # a part of something longer, or another language
            continue
        question = rng.choice((f"What is the value of `{m[1]}`?", f"To what is `{m[1]}` set?"))
        yield TextQuestion("constant", question, value, m.start(2), m.start(2) + len(value), (m.span(1),))


def imported_from(code: Code, rng: random.Random) -> Iterator[TextQuestion]:
    """The module that a name comes from, when all imports agree."""
    found = [m for m in _IMPORT.finditer(code.text) if code.in_code(m.start())]
    modules: dict[str, set[str]] = {}
    for m in found:
        modules.setdefault(m[2], set()).add(m[1])
    for m in shuffled(rng, found):
        if len(modules[m[2]]) == 1 and m[1] != "__future__":
            question = f"From which module is `{m[2]}` imported?"
            yield TextQuestion("imported_from", question, m[1], *m.span(1), (m.span(2),))


def base_class(code: Code, rng: random.Random) -> Iterator[TextQuestion]:
    """The one class that another is built on."""
    for m in shuffled(rng, code.matches(_BASE)):
        question = rng.choice((f"Which class does `{m[1]}` inherit from?", f"What is the base class of `{m[1]}`?"))
        yield TextQuestion("base_class", question, m[2], *m.span(2), (m.span(1),))


def docstring(code: Code, rng: random.Random) -> Iterator[TextQuestion]:
    """What the first line of a docstring says, or which function it describes."""
    for m in shuffled(rng, code.matches(_DOCSTRING)):
        if code.text.count(m[2]) > 1:
            continue
        if rng.random() < 0.5:
            asked = rng.choice(("What does `{}` do, as its docstring says?", "What is the docstring of `{}`?"))
            yield TextQuestion("docstring", asked.format(m[1]), m[2], *m.span(2), (m.span(1),))
        else:
            question = f'Which function or class has the docstring "{m[2]}"?'
            yield TextQuestion("docstring", question, m[1], *m.span(1), (m.span(2),))


def next_line(code: Code, rng: random.Random) -> Iterator[TextQuestion]:
    """The line after a line that stands only once."""
    lines = [m for m in re.finditer(r"^[ \t]*(\S.{14,90})$", code.text, re.MULTILINE) if code.in_code(m.start())]
    times = Counter(m[1].strip() for m in lines)
    for a, b in shuffled(rng, [(a, b) for a, b in zip(lines, lines[1:], strict=False) if b.start() == a.end() + 1]):
        if times[a[1].strip()] == 1 and "`" not in a[1] and code.text.count(a[1]) == 1:
            question = f"Which line comes right after `{a[1].strip()}`?"
            yield TextQuestion("next_line", question, b[1].rstrip(), *code_span(code, b, 1), (code_span(code, a, 1),))
