"""SubRip and WebVTT captions: what is said, with the time at which it is said as its place."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from app.errors import InputError
from app.ingest.blocks import About, Block, Refused
from app.ingest.files import read_file
from app.ingest.text import MAX_TEXT_BYTES, decode

_CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIMES = re.compile(rf"[ \t]*{_CLOCK}[ \t]*-->[ \t]*{_CLOCK}.*")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?[ \t]+([^>]+)>")
_MARK = re.compile(r"</?(?:[a-z]+(?:\.[^>]*)?(?:[ \t][^>]*)?|\d[\d:.]*)>|\{\\[^}]*\}", re.IGNORECASE)
_READING = re.compile(r"<rt(?:\.[^>]*)?>(.*?)(?:</rt>|(?=</ruby>)|$)", re.IGNORECASE)
_ASIDE = re.compile(r"(NOTE|STYLE|REGION)\b")
_FLASH_S = 0.05  # a cue so short only keeps the last line on the screen while the next one rolls in


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The cues in order; a line that stays on the screen while the next one comes is read once.

    Raises:
        Refused: there is no cue in it.
    """
    try:
        text, note = decode(read_file(path, path.name, MAX_TEXT_BYTES), path.name, encoding=about.encoding)
    except InputError as error:
        raise Refused(str(error).removeprefix(f"{path.name}: ")) from error
    about.notes += [note] if note else []
    shown: list[str] = []
    seen, start, end_before = 0, 0.0, 0.0
    for start, end, lines in _cues(text):
        seen += 1
        new = lines
        if start <= end_before + _FLASH_S and shown and lines:
            if end - start <= _FLASH_S and lines == shown[-len(lines) :]:
                new = []
            elif len(lines) > 1 and lines[0] == shown[-1]:
                new = lines[1:]
        shown, end_before = lines, end
        if new:
            yield Block("\n".join(new), place=_label(start), joined=True)
    if not seen:
        raise Refused("no caption in it (a time line looks like 00:01:02,000 --> 00:01:04,000); check what the file is")


def _cues(text: str) -> Iterator[tuple[float, float, list[str]]]:
    """(start, end, lines) of each cue. A blank line ends it, or else the next time line."""
    lines = text.split("\n")
    times = [(i, found) for i, line in enumerate(lines) if (found := _TIMES.fullmatch(line))]
    ends = [*(i for i, _ in times[1:]), len(lines)]
    for (at, found), end in zip(times, ends, strict=False):
        body = lines[at + 1 : end]
        while body and not body[0].strip():
            body.pop(0)
        blank = next((i for i, line in enumerate(body) if not line.strip()), None)
        body = _body(body, blank, last=end == len(lines))
        spoken = [cleaned for line in body if (cleaned := _clean(line))]
        yield _seconds(found, 1), _seconds(found, 5), spoken


def _body(lines: list[str], blank: int | None, *, last: bool) -> list[str]:
    """The lines of a cue out of those up to the next time line; the number or name of the next cue is none of it."""
    if blank is not None:
        after = [line for line in lines[blank:] if line.strip()]
        aside = bool(after) and _ASIDE.match(after[0])
        named = not last and len(after) <= 1
        return lines[:blank] if aside or named or not after else lines[:blank] + (after if last else after[:-1])
    return lines[:-1] if not last and lines and lines[-1].strip().isdigit() else lines


def _clean(line: str) -> str:
    line = _READING.sub(r"(\1)", _VOICE.sub(r"\1: ", line))
    return html.unescape(_MARK.sub("", line)).strip()


def _seconds(found: re.Match[str], first: int) -> float:
    hours, minutes, seconds, rest = found.groups()[first - 1 : first + 3]
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(rest) / 10 ** len(rest)


def _label(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
