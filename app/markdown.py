"""Markdown of answers and of imported chats: one parser says what is code, for the page and for exports.

What an answer, a document or an imported chat holds is shown and never obeyed: no HTML, no picture, no style of it
reaches a page, and no link but to the web.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin

from app.mathml import mathml

_LINKS = re.compile(r"(?:https?|mailto):", re.IGNORECASE)
_INLINE = re.compile(r"([\\`*_\[\]<>&~|$])")
_BEGIN, _END = "\ue0f0", "\ue0f1"  # stand for the ends of a mark while Markdown is made HTML
_AT_LINE = re.compile(r"[\s>#*+-]*(?:\d+[.)]\s+)?")  # what begins a line and is no word of it
_MARKED_UP = re.compile(r"^(?:#{1,6} \S|```|~~~|\|[ :-]*-{3})|\[[^\]\n]+\]\(\S+\)|\*\*\w[^*\n]*\*\*", re.MULTILINE)
_HOLE = re.compile("\ue000(\\d+)\ue001")  # stands for what is put into a text; these characters mean nothing else
_TAG = re.compile(r"<[^<>]*>")
_AT_START = re.compile(r"^(\s*\d*)([#>+=.)-])")  # a heading, a quotation, a list


@lru_cache(maxsize=2048)  # every view of a chat that is being answered shows its earlier answers again
def html(text: str, marks: tuple[tuple[int, str], ...] = ()) -> str:
    """HTML of an answer; tags and pictures in it are shown as they were written.

    Args:
        marks: (place in the text, HTML to be put there), in order.
    """
    shown = _page_parser().render(_with_holes(text, [place for place, _ in marks]))
    if marks:
        shown = _TAG.sub(lambda tag: _HOLE.sub("", tag[0]), shown)  # none inside of a tag
        shown = _HOLE.sub(lambda hole: marks[int(hole[1])][1], shown)
    return f'<div class="lt-md">{shown}</div>'


def _with_holes(text: str, places: Sequence[int]) -> str:
    """The text with a hole at each place, told by its number; what looked like one before is replaced."""
    pieces, done, text = [], 0, re.sub("[\ue000\ue001]", "\ufffd", text)
    for number, place in enumerate(places):
        place = done + len(text[done : max(done, place)].rstrip("*_~| "))  # emphasis and cells end after it
        pieces += [text[done:place], f"\ue000{number}\ue001"]
        done = place
    return "".join([*pieces, text[done:]])


def marked_html(text: str, start: int, end: int) -> str:
    """HTML of Markdown with characters [start, end) marked, block by block.

    Where the marks would change what the Markdown means, they are left out.
    """
    if start >= end:
        return html(text)
    start += len(_AT_LINE.match(text, start)[0]) if not text[:start].rpartition("\n")[2].strip() else 0
    made = html(f"{text[:start]}{_BEGIN}{text[start:end]}{_END}{text[end:]}")
    if made.count(_BEGIN) != 1 or made.count(_END) != 1 or start >= end:
        return html(text)
    before, _, rest = made.partition(_BEGIN)
    inside, _, after = rest.partition(_END)
    return f"{before}{_with_marks(inside)}{after}"


def _with_marks(made: str) -> str:
    """HTML of our parser with its words marked; formulas stay as they are, for nothing but formulas may be in them."""
    marked = ""
    for piece in re.split(r"(<math.*?</math>|<[^>]*>)", made, flags=re.DOTALL):  # tags of the text are escaped
        tag = piece.startswith("<") or not piece.strip()
        marked += piece if tag else f'<mark class="lt-mark">{piece}</mark>'
    return marked


def looks_marked_up(text: str) -> bool:
    """Whether a text is Markdown rather than prose."""
    return bool(_MARKED_UP.search(text))


def plain_html(text: str) -> str:
    """HTML of text that is no Markdown, such as a question: every character and line as it was typed."""
    return f'<div class="lt-md lt-plain">{escape(text)}</div>'


def plain(text: str) -> str:
    """Markdown source that shows a text as it is."""
    lines = [_AT_START.sub(r"\1\\\2", _INLINE.sub(r"\\\1", line)) for line in text.splitlines()]
    return "\n".join(re.sub(r"^\s{4,}", lambda blank: "&nbsp;" * len(blank[0]), line) for line in lines)


def source(text: str, marks: Sequence[tuple[int, str]] = ()) -> str:
    """The same Markdown with its HTML and pictures escaped, for an export; code keeps every character.

    `marks`: (place in the text, words to be put there), in order.

    The result is parsed again: where it has any HTML, or other code than before, code is escaped too. Code that is left
    open is closed: what follows in the file is no part of it.
    """
    if marks:
        held = source(_with_holes(text, [place for place, _ in marks]))
        return _HOLE.sub(lambda hole: marks[int(hole[1])][1], held)
    tokens = _export_parser().parse(text)
    escaped = "".join(_escaped(piece) if prose else piece for prose, piece in _pieces(text, tokens))
    again = _strict_parser().parse(escaped)
    kinds = {token.type for token in _flat(again)}
    if kinds & {"html_block", "html_inline", "image"} or _code(again) != _code(tokens):
        return _closed(_escaped(text))
    return _closed(escaped)


def _closed(text: str) -> str:
    last = _strict_parser().parse(f"{text}\n\nend")
    if last and last[-1].type == "fence":
        return f"{text}\n{last[-1].markup}"
    return text


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "!\\[")


def _image(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    return escape(f"![{token.content}]({token.attrGet('src')})")


def _link(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer")
    tokens[index].attrSet("target", "_blank")
    return self.renderToken(tokens, index, options, env)


def _formula(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """What cannot be shown as a formula is shown as it was written."""
    token = tokens[index]
    token.content = _HOLE.sub("", token.content)
    found = mathml(token.content, display=token.type != "math_inline")
    end = {"\\(": "\\)", "\\[": "\\]"}.get(token.markup, token.markup)
    return found or f"<code>{escape(token.markup + token.content + end)}</code>"


@cache
def _page_parser() -> MarkdownIt:
    parser = _export_parser(breaks=True)
    parser.use(dollarmath_plugin, allow_space=False, allow_digits=False, allow_labels=False, double_inline=True)
    parser.use(texmath_plugin, delimiters="brackets")
    for kind in ("math_inline", "math_inline_double", "math_block", "math_block_eqno"):
        parser.add_render_rule(kind, _formula)
    parser.disable("entity")  # an answer that holds &lt; shows it
    parser.validateLink = lambda url: bool(_LINKS.match(url))
    parser.add_render_rule("image", _image)
    parser.add_render_rule("link_open", _link)
    return parser


def _export_parser(*, breaks: bool = False) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": breaks})
    return parser.enable(["table", "strikethrough"]).disable("reference")  # a definition must not vanish


@cache
def _strict_parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def _flat(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _flat(token.children or ())


def _code(tokens: Sequence[Token]) -> list[str]:
    """The contents of all code, in order."""
    return [token.content for token in _flat(tokens) if token.type in ("fence", "code_block", "code_inline")]


def _pieces(text: str, tokens: Sequence[Token]) -> Iterator[tuple[bool, str]]:
    """Cut Markdown at its code; yields whether a piece is prose, and the piece."""
    lines = text.splitlines(keepends=True)
    done = 0  # lines
    for token in _flat(tokens):
        if token.map is None or not (token.type in ("fence", "code_block") or token.type == "inline"):
            continue
        first, last = token.map
        if first < done:
            continue
        yield True, "".join(lines[done:first])
        block = "".join(lines[first:last])
        if token.type == "inline":
            yield from _spans(block, token.children or ())
        else:
            yield False, block
        done = last
    yield True, "".join(lines[done:])


def _spans(block: str, children: Sequence[Token]) -> Iterator[tuple[bool, str]]:
    """Cut a block at the code inside its lines; a span that is not found is left to the parser's second look."""
    for child in children:
        if child.type != "code_inline":
            continue
        words = r"[\s>]+".join(map(re.escape, re.split(r"\s+", child.content)))
        found = re.search(rf"(?<!`){child.markup}(?!`)[\s>]*{words}[\s>]*(?<!`){child.markup}(?!`)", block)
        if found:
            yield True, block[: found.start()]
            yield False, found[0]
            block = block[found.end() :]
    yield True, block
