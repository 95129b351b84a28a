"""Questions that a text itself answers, made by rules, each with the place of its answer. No torch, no model.

For prose: who said, did or is what, gaps, numbers, what follows, chapters, counting. For code: where names are defined,
arguments, values, modules, lines. What the rules cannot read safely they leave out, so that few answers are wrong.
"""

import random
from collections.abc import Sequence
from itertools import islice

from app.tasks.questions import code, prose, structure
from app.tasks.questions.passage import Passage, TextQuestion, flat

__all__ = ["CODE_KINDS", "KINDS", "PROSE_KINDS", "TextQuestion", "flat", "is_code", "questions"]

is_code = code.is_code
_PROSE = {
    "who_said": prose.who_said,
    "who_did": prose.who_did,
    "who_is": prose.who_is,
    "named": prose.named,
    "fact": prose.fact,
    "number": prose.number,
    "cloze": prose.cloze,
    "definition": prose.definition,
    "quote": prose.quote,
    "continue": prose.continuation,
    "next_sentence": prose.next_sentence,
    "count": structure.count,
    "first_named": structure.first_named,
    "contents": structure.contents,
    "next_heading": structure.next_heading,
    "chapter_title": structure.chapter_title,
    "chapter_of": structure.chapter_of,
    "chapter_begins": structure.chapter_begins,
}
_CODE = {
    "defined_in": code.defined_in,
    "method_of": code.method_of,
    "arguments": code.arguments,
    "constant": code.constant,
    "imported_from": code.imported_from,
    "base_class": code.base_class,
    "docstring": code.docstring,
    "next_line": code.next_line,
}
PROSE_KINDS, CODE_KINDS = tuple(_PROSE), tuple(_CODE)
KINDS = PROSE_KINDS + CODE_KINDS


def questions(text: str, rng: random.Random, *, kinds: Sequence[str] = KINDS, most: int = 20) -> list[TextQuestion]:
    """Questions about a text, in random order; the text must be all that the model will see.

    What a question quotes stands in `text` only once, and `text[q.start : q.end]` is the answer with its line breaks
    (`flat` makes it one line); of `count` it is the first thing counted, of `contents` the first heading.

    Args:
        text: prose, or code. Files of a codebase are headed by a line `path (Language)`, as ingestion makes them.
        kinds: which to make; those that do not fit the text give nothing.
        most: questions of one kind.

    Raises:
        ValueError: a kind that is not known.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"kinds {', '.join(unknown)}: not known; known are {', '.join(KINDS)}")
    makers, subject = (_CODE, code.Code(text)) if is_code(text) else (_PROSE, Passage(text))
    made = [q for kind in kinds if kind in makers for q in islice(makers[kind](subject, rng), most)]
    rng.shuffle(made)
    return made
