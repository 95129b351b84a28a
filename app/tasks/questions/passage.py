"""A text taken apart for questions: sentences, sayings, names, headings, each with its place in the text."""

import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

from app.ingest.text import find_headings

T = TypeVar("T")
BLANK = "____"
_TITLE = (
    r"(?:(?:Mr|Mrs|Ms|Dr|Messrs|Capt|Col|Gen|Prof|Rev|St)\.?\s|(?:Miss|Madame|Mademoiselle|Monsieur|Lady|Lord|Sir"
    r"|Captain|Colonel|Major|General|Professor|Doctor|Father|Mother|Brother|Sister|Uncle|Aunt|Queen|King|Prince|Princess|Count"
    r"|Countess|Baron|Duke|Duchess|Squire|Judge|Inspector|Master|Don|Dame|Saint)\s)"
)
_WORD = r"[A-Z][a-z]+(?:['’-][A-Z]?[a-z]{2,})*"
NAME = rf"(?:{_TITLE}{_WORD}|{_WORD})(?:\s(?:(?:de|du|la|von|van|of)\s)?{_WORD}){{0,2}}"
_ABBREVIATED = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Messrs|Capt|Col|Gen|Lieut|Lt|Prof|Rev|Hon|Jr|Sr|No|Nos|vs|etc|viz|cf|[Vv]ol|[Ff]ig|[Ss]ec|[Ee]q|[Cc]h|pp?)"
    r"|(?<![\w-])[A-Z]|e\.g|i\.e|a\.m|p\.m|Jan|Feb|Aug|Sept|Oct|Nov|Dec|Alph|Esq|Bros|Co)$"
)
_SENTENCE_END = re.compile(r"[.!?]+[\"”’')\]]*(?=\s+[\"“‘'(\[]?[A-Z0-9]|\s*$)")
_DOUBLE = re.compile('["“”]')
_SINGLE = re.compile(r"(?<!\S)['‘][A-Z]")
_SINGLE_SPEECH = re.compile(
    r"(?<![^\s(—-])['‘](?=[A-Z])((?:(?!(?<!\S)['‘]).)*?)(?:(?<=[,.!?;—-])(['’])(?!\w)|$)", re.DOTALL
)
_MARKS = re.compile(r'["“”‘`_*\[\]{}<>|#=\\]|(?<!\S)\'|\'(?!\S)')
_MARKUP = re.compile(r"[`_*\[\]{}<>|#=\\]|::")
_JUNK = re.compile(
    r"[A-Z]{3,} [A-Z]{3,}|https?:|www\.|@|(?:\d[^\d]+){4}\d|[.·] [.·]|\b[Ff]ig\."
    r"|[a-z:,] \d{1,3}(?:\.\d+)? [A-Z][a-z]"
)
_PARAGRAPH = re.compile(r"(?:[^\n]|\n(?![ \t]*\n))+")
_NO_NAMES = frozenset(
    """I A An The This That These Those It Its He She They We You His Her Their Our My Your Then There Here When Where
    What Which Who Whom Whose Why How If Though Although But And Or Nor So Yet For As At By In On Of To From With
    Without After Before While Until Since Because Both Each Every All Some Any None No Not Now Once Only Even Still
    Such Other Another One Two Three Four Five Six Seven Eight Nine Ten First Second Third Last Next Many Much Most
    More Few Several Oh Ah Well Yes Let Perhaps Just Never Nothing Everything Something Nobody Everybody Somebody
    Everyone Someone God Heaven Sir Madam Monsieur Madame Mr Mrs Miss Dr Lord Lady Captain Chapter Book Part Letter
    January February March April May June July August September October November December
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday Christmas Easter
    English French German Italian Spanish Russian American Roman Greek Latin Indian Chinese Dutch Irish
    Scotch""".split()
)
_DEEDS = (
    "said|asked|replied|cried|answered|exclaimed|whispered|murmured|laughed|smiled|nodded|sighed|shrugged|frowned"
    "|looked|thought|knew|felt|wished|wondered|sat|spoke|told|turned|took|came|went|rose|stood|saw|heard|wrote"
)
_PERSON_AFTER = re.compile(rf"({NAME}) (?:had |has )?(?:{_DEEDS})\b")
_PERSON_BEFORE = re.compile(rf"\b(?:{_DEEDS}) ({NAME})\b")
_PERSON_TITLED = re.compile(rf"({_TITLE}{_WORD})\b")
_MID_NAME = re.compile(rf"(?<=[a-z,;] )({NAME})(?![\w])")


@dataclass(frozen=True)
class TextQuestion:
    """A question about a text, and where its answer stands.

    Attributes:
        kind: one of `questions.KINDS`.
        start, end: characters of the answer in the text; for `count` the first thing counted, for `contents` the
            first heading.
        places: further characters that the answer rests on.
    """

    kind: str
    question: str
    answer: str
    start: int
    end: int
    places: tuple[tuple[int, int], ...] = ()

    def moved(self, by: int) -> "TextQuestion":
        """The same question about a text that begins `by` characters earlier."""
        places = tuple((start + by, end + by) for start, end in self.places)
        return TextQuestion(self.kind, self.question, self.answer, self.start + by, self.end + by, places)


class Sentence(NamedTuple):
    """Where a sentence stands, and in which paragraph."""

    start: int
    end: int
    paragraph: int


def flat(text: str) -> str:
    """Text on one line, blanks single."""
    return " ".join(text.split())


def shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    """The items in random order."""
    listed = list(items)
    return rng.sample(listed, len(listed))


def words_in(text: str) -> int:
    """How many words, as blanks divide them."""
    return len(text.split())


class Passage:
    """A text with what the question makers look for in it, each found once, when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def flat(self) -> str:
        return flat(self.text)

    def once(self, phrase: str) -> bool:
        """Whether a phrase stands in the text exactly once, however its lines are broken."""
        phrase = flat(phrase)
        at = self.flat.find(phrase)
        return at >= 0 and self.flat.find(phrase, at + 1) < 0

    def count(self, word: str) -> int:
        """How often a word or name stands in the text."""
        found, at = 0, self.flat.find(word)
        while at >= 0:
            found += not (self.flat[at - 1 : at].isalnum() or self.flat[at + len(word) : at + len(word) + 1].isalnum())
            at = self.flat.find(word, at + 1)
        return found

    @cached_property
    def words(self) -> Counter[str]:
        """How often each word in small letters stands in the text."""
        return Counter(re.findall(r"(?<![\w'’-])[a-z]+(?![\w'’-])", self.flat))

    @cached_property
    def paragraphs(self) -> list[tuple[int, int]]:
        return [m.span() for m in _PARAGRAPH.finditer(self.text) if m[0].strip()]

    @cached_property
    def sentences(self) -> list[Sentence]:
        """Whole sentences; headings and other lines without an end mark are left out."""
        found = []
        for number, (start, end) in enumerate(self.paragraphs):
            begin = start
            for match in _SENTENCE_END.finditer(self.text, start, end):
                if _ABBREVIATED.search(self.text, max(start, match.start() - 8), match.start()):
                    continue
                while begin < match.end() and self.text[begin].isspace():
                    begin += 1
                found.append(Sentence(begin, match.end(), number))
                begin = match.end()
        return found

    @cached_property
    def narrated(self) -> list[Sentence]:
        """Sentences of 6 to 30 words from a capital to a full stop, without speech, markup, page heads or index."""
        kept = []
        for sentence in self.sentences:
            said = self.text[sentence.start : sentence.end]
            plain = said[0].isupper() and said[-1] == "." and not _MARKS.search(said) and not said.isupper()
            if plain and 6 <= words_in(said) <= 30 and not _JUNK.search(flat(said)) and not self.speaks(sentence.start):
                kept.append(sentence)
        return kept

    @cached_property
    def sayings(self) -> list[tuple[int, int]]:
        """What stands between the quotation marks of a paragraph, the marks left out; no markup."""
        return [(a, b) for a, b, closed in self._spoken if closed and not _MARKUP.search(self.text, a, b)]

    def speaks(self, place: int) -> bool:
        """Whether a place lies inside quotation marks; an open end counts to the end of its paragraph."""
        at = bisect_right(self._spoken, (place, len(self.text), True)) - 1
        return at >= 0 and self._spoken[at][0] <= place < self._spoken[at][1]

    @cached_property
    def _spoken(self) -> list[tuple[int, int, bool]]:
        """(start, end, closed) of all speech, in double marks or, where a text prefers them, single ones."""
        if len(_SINGLE.findall(self.text)) > len(_DOUBLE.findall(self.text)):
            found = [m for start, end in self.paragraphs for m in _SINGLE_SPEECH.finditer(self.text, start, end)]
            return [(m.start() + 1, m.end(1), bool(m[2])) for m in found]
        spoken = []
        for start, end in self.paragraphs:
            marks = [m.start() for m in _DOUBLE.finditer(self.text, start, end)]
            spoken += [(a + 1, b, True) for a, b in zip(marks[::2], marks[1::2], strict=False)]
            spoken += [(marks[-1] + 1, end, False)] if len(marks) % 2 else []
        return spoken

    @cached_property
    def names(self) -> Counter[str]:
        """Proper names, by how often they stand inside a sentence."""
        found = Counter(m[1] for m in _MID_NAME.finditer(self.flat))
        return Counter({name: n for name, n in found.items() if is_name(name)})

    @cached_property
    def persons(self) -> set[str]:
        """Names of those who speak, look or think somewhere in the text, or bear a title."""
        found = {m[1] for rule in (_PERSON_AFTER, _PERSON_BEFORE, _PERSON_TITLED) for m in rule.finditer(self.flat)}
        return {name for name in found if is_name(name)}

    @cached_property
    def known(self) -> list[str]:
        """Names of persons, and others that stand inside a sentence more than once, sorted."""
        return sorted(name for name, times in self.names.items() if times > 1 or name in self.persons)

    @cached_property
    def headings(self) -> list[tuple[int, int, str]]:
        """(start, end, title) of each chapter heading."""
        return find_headings(self.text, markdown=re.search(r"^#{1,3} ", self.text, re.MULTILINE) is not None)

    def strip(self, start: int, end: int) -> tuple[int, int]:
        """The span without the blanks at its ends."""
        part = self.text[start:end]
        return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())

    def find(self, what: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where words stand in a part of the text, however its lines are broken."""
        pattern = re.compile(r"\s+".join(map(re.escape, what.split())))
        yield from (m.span() for m in pattern.finditer(self.text, start, end))


def is_whole(text: str, start: int) -> bool:
    """Whether a name that begins at `start` is not the rest of a longer one ("Mann" of "Mrs. Mann")."""
    word = (text[max(0, start - 24) : start].rpartition("\n\n")[2].split() or [""])[-1]
    return not word[:1].isupper() or (word[-1] in '.!?,;:"”' and not re.fullmatch(_TITLE.replace(r"\s", ""), word))


def is_name(name: str) -> bool:
    """Whether capitalised words can be a name: not the first word of a sentence, a month or a mere title."""
    titled = re.match(_TITLE, name)
    words = name[titled.end() if titled else 0 :].split()
    return bool(words) and words[0] not in _NO_NAMES and not words[0].isupper()
