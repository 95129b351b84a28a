"""Questions about prose: who said, did or is, gaps, numbers, what follows."""

import random
import re
from collections.abc import Iterator

from app.tasks.questions.passage import BLANK, NAME, Passage, TextQuestion, flat, is_name, is_whole, shuffled, words_in

_SAID = (
    "said|asked|replied|cried|answered|exclaimed|returned|whispered|remarked|observed|continued|added|repeated|muttered"
    "|shouted|murmured|began|demanded|inquired|declared|interrupted|rejoined|responded|suggested|explained|called"
)
_TELLING = ("asked", "cried", "whispered", "shouted", "exclaimed", "replied", "muttered")
_SOMEBODY = r"the (?!same|other|first|second|latter|former|next)[a-z]+(?: (?![a-z]+ly\b)[a-z]+)?(?=[,.;:])"
_SPEAKER_AFTER = re.compile(rf"\s+({_SAID})\s({NAME}|{_SOMEBODY})(?![\w-]|['’]s|(?:,)? and [A-Z])")
_SPEAKER_BEFORE = re.compile(rf"(?:^|[.!?\"”] )\s*({NAME})\s({_SAID})(?: [a-z]+ly)?[,:]\s+$")
_IRREGULAR = (
    "was|were|had|went|came|took|gave|saw|made|found|left|told|said|heard|felt|kept|held|stood|sat|fell|ran|rose|lay"
    "|brought|bought|caught|taught|thought|sought|fought|led|met|sent|spent|built|broke|spoke|wrote|drove|rode|drew"
    "|grew|knew|threw|flew|wore|swore|bore|tore|began|sang|rang|drank|sank|sprang|won|hung|struck|read|put|set|cut"
    "|let|lost|paid|laid|became|forgot|got|shot|shook|woke|chose|froze|stole|hid|did|is|has|owns|lives|likes"
)
_DEED = re.compile(rf"({NAME})\s((?:{_IRREGULAR}|[a-z]{{3,}}ed)\b.*)", re.DOTALL)
_VERB = re.compile(rf"\b(?:{_IRREGULAR}|and|or|[a-z]{{3,}}ed)\b")
_APPOSITION = re.compile(
    rf"(?<!, )(?<!\w)({NAME}),\s+((?:the|an?)\s+[a-z][a-z'’-]+(?:\s+[a-z][a-z'’-]+){{0,5}}?"
    rf"(?:\s+of\s+(?:the\s+)?[A-Z][a-z]+)?)(?=[,.;](?!\s+(?:and|or)\b))"
)
_NO_ROLE = re.compile(
    r"\b(?:moment|minute|hour|day|days|week|month|year|time|night|morning|evening|few|little|same|way|other|others|more"
    r"|less|thing|things|first|second|last|next|latter|former|one|whole|very|lot|part|rest|said|was|were|had|is|are|did"
    r"|went|came|saw|made|took|who|which|that|when|where|as|if|but|he|she|they|it|his|her|their|its|him|them)\b"
)
_CALLED = re.compile(
    rf"\b(?:(?:an?|one|certain)\s+((?:[a-z]+\s+)?[a-z]{{3,}})\s+(?:named|called|known\s+as|by\s+the\s+name\s+of)"
    rf"|the\s+((?:[a-z]+\s+)?[a-z]{{3,}})\s+(?:named|known\s+as))\s+({NAME})(?!['’]s)"
)
_PLACE = rf"(?:the )?{NAME}"
_FACTS = (
    (rf"({NAME}) was born (?:in|at|near) ({_PLACE})(?!\w)", "Where was {} born?"),
    (rf"({NAME}) was born (?:in|on) ((?:[A-Z][a-z]+ )?(?:\d\d?, )?\d{{4}})\b", "When was {} born?"),
    (rf"({NAME}) (?:lived|lives|dwelt|resided) (?:in|at|near) ({_PLACE})(?!\w)", "Where did {} live?"),
    (rf"({NAME}) died (?:in|at|near) ({_PLACE})(?!\w)", "Where did {} die?"),
    (rf"({NAME}) died (?:in|on) ((?:[A-Z][a-z]+ )?(?:\d\d?, )?\d{{4}})\b", "When did {} die?"),
    (rf"({NAME}) married ({NAME})(?!\w)", "Whom did {} marry?"),
    (rf"({NAME}) (?:is|was) the (?:son|daughter|wife|brother|sister|mother|father|child) of ({NAME})(?!\w)",
     "To whom is {} related, as the text says?"),
    (rf"({NAME}) (?:went|travelled|sailed|journeyed|returned|came back) to ({_PLACE})(?!\w)", "Where did {} go?"),
    (rf"({NAME}) arrived (?:in|at) ({_PLACE})(?!\w)", "Where did {} arrive?"),
    (rf"({NAME}) (?:is|was) situated (?:in|on|at|near) ({_PLACE})(?!\w)", "Where is {} situated?"),
)  # fmt: skip
_FACT_WORD = re.compile(
    r"\b(?:born|lived|lives|dwelt|resided|died|married|son|daughter|wife|brother|sister|mother|father|child|went"
    r"|travelled|sailed|journeyed|returned|came|arrived|situated)\b"
)
_FACT_RULES = tuple((re.compile(rule.replace(" ", r"\s+")), asked) for rule, asked in _FACTS)
_COUNTED = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen"
    "|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
)
_NUMBER = re.compile(
    r"(?<![\w.,$£-])(?<!\bother )(?<!\bthe )(?<!Section )(?<!Chapter )(?<!page )"
    rf"(?:\d{{1,3}}(?:,\d{{3}})+|\d+(?:\.\d+)?|(?:{_COUNTED})(?:[- ](?:one|{_COUNTED}|hundred|thousand))?)"
    r"(?![\w-]|[.,]\d)"
)
_DEFINITION = re.compile(
    r"((?:An?\s+[a-z][a-z-]+(?:\s+[a-z-]+){0,2}|[A-Z][a-z-]+)\s+(?:is|are|means))\s+"
    r"((?:defined\s+as\s+|called\s+)?(?:an?|the|any|that|those|one)\s.+)\.",
    re.DOTALL,
)
_NO_TERM = re.compile(
    r"^(?:the|this|that|these|those|it|there|he|she|they|here|what|who|which|such|one|another|each|if|when|as|but|and|so|then|now"
    r"|thus|hence|yet|also|even"
    r"|not|all|in|of|at|for|on|by|to|nothing|everything|only|thing|man|woman|reason|result|question|fact|point|truth"
    r"|idea|rest|other|same|first|last|next|life|my|your|his|her|our|their|its|we|you)\b",
    re.IGNORECASE,
)
_NAME_INSIDE = re.compile(rf"(?<=[a-z,]\s){NAME}(?!\w)")
_WORD_INSIDE = re.compile(r"(?<=[a-z,]\s)[a-z]{5,}(?![\w'’-])")
_SPEAKERS_OWN = re.compile(r"\b(?:I|me|my|we|us|our|you|your|this|these)\b")
_NOTHING = ("example", "thing", "matter", "man", "woman", "boy", "girl", "way", "person", "few", "little", "lot", "one")
_EMPTY = frozenset(
    """about above after again against almost alone along already although always among another anything around because
    become before behind being below beneath beside besides between beyond could during either enough every everything
    except first further hardly having herself himself however indeed instead itself least might mostly myself neither
    never nothing often other others otherwise ought perhaps quite rather scarcely seemed several shall should simply
    since something sometimes still taken their theirs them themselves there these thing things those though through
    therefore together toward towards under until upon usually where whether which while whole whose within without
    would yourself""".split()
)


def who_said(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """Who spoke words that are quoted whole, or their beginning."""
    text = passage.text
    for start, end in shuffled(rng, passage.sayings):
        said = flat(text[start:end])
        if words_in(said) < 5 or not said[:1].isupper():
            continue
        found = _SPEAKER_AFTER.match(text, end + 1, end + 120)
        place, verb = (found.span(2), found[1]) if found else (None, None)
        if place is None and (found := _SPEAKER_BEFORE.search(text[max(0, start - 80) : start - 1])):
            offset = max(0, start - 80)
            place, verb = (found.start(1) + offset, found.end(1) + offset), found[2]
        if place is None:
            continue
        who = flat(text[slice(*place)])
        words = said.split()
        shown = " ".join(words[:20]) if len(words) > 24 else said
        if not (is_name(who) or who.startswith("the ")) or not passage.once(shown):
            continue
        shown = f'"{shown} ..."' if len(words) > 24 else f'"{shown.rstrip(",;-— ")}"'
        end_mark = "" if shown[-2] in "?!" else "?"
        verb = verb if verb in _TELLING else "said"
        question = rng.choice((f"Who {verb}: {shown}{end_mark}", f"Whose words are these: {shown}{end_mark}"))
        yield TextQuestion("who_said", question, who, *place, places=((start, end),))


def quote(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """The rest of a saying whose beginning is given."""
    for start, end in shuffled(rng, passage.sayings):
        words = passage.text[start:end].split()
        if not 9 <= len(words) <= 40 or not words[0][0].isupper():
            continue
        cut = rng.randrange(4, min(len(words) - 3, 10))
        yield from _rest(passage, rng, "quote", start, end, cut, (
            'How does the saying go on that begins: "{}"?', 'Complete the quotation: "{} ..."',
            'What comes after the words "{}"?',
        ))  # fmt: skip


def continuation(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """The rest of a sentence whose beginning is given."""
    for sentence in shuffled(rng, passage.narrated):
        count = words_in(passage.text[sentence.start : sentence.end])
        if count < 10:
            continue
        cut = rng.randrange(4, min(count - 3, 10))
        yield from _rest(passage, rng, "continue", sentence.start, sentence.end, cut, (
            'Continue the sentence: "{} ..."', 'How does the sentence go on that begins "{}"?',
            'Finish this sentence of the text: "{} ..."',
        ))  # fmt: skip


def _rest(
    passage: Passage, rng: random.Random, kind: str, start: int, end: int, cut: int, asked: tuple[str, ...]
) -> Iterator[TextQuestion]:
    """What follows the first `cut` words of a span, when they stand only there."""
    places = [m.span() for m in re.finditer(r"\S+", passage.text[start:end])]
    head = flat(passage.text[start : start + places[cut - 1][1]])
    if passage.once(head) and head[-1] not in ".!?":
        ends = len(passage.text[start:end].rstrip().rstrip(",;-—"))
        place = start + places[cut][0], start + ends
        answer = flat(passage.text[slice(*place)])
        yield TextQuestion(kind, rng.choice(asked).format(head), answer, *place, places=((start, place[0]),))


def next_sentence(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """The sentence right after one that is quoted, or right before."""
    narrated = passage.narrated
    pairs = [(a, b) for a, b in zip(narrated, narrated[1:], strict=False) if a.paragraph == b.paragraph]
    for a, b in shuffled(rng, pairs):
        if passage.text[a.end : b.start].strip():
            continue
        first, second = (flat(passage.text[s.start : s.end]) for s in (a, b))
        if not (passage.once(first) and passage.once(second)):
            continue
        if rng.random() < 0.75:
            asked = rng.choice(('Which sentence comes right after "{}"?', 'What does the text say right after "{}"?'))
            yield TextQuestion("next_sentence", asked.format(first), second, b.start, b.end, ((a.start, a.end),))
        else:
            asked = rng.choice(('Which sentence comes right before "{}"?', 'What does the text say right before "{}"?'))
            yield TextQuestion("next_sentence", asked.format(second), first, a.start, a.end, ((b.start, b.end),))


def who_did(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """The subject of a sentence that begins with a person's name."""
    for sentence in shuffled(rng, passage.narrated):
        found = _DEED.match(passage.text, sentence.start, sentence.end)
        if not found or flat(found[1]) not in passage.persons or flat(found[1]) not in passage.names:
            continue
        deed = flat(found[2]).partition(";")[0].rstrip(".")
        if 5 <= words_in(deed) <= 24 and passage.once(deed) and found[1].split()[-1] not in deed:
            place = found.span(1)
            yield TextQuestion("who_did", f"Who {deed}?", flat(found[1]), *place, ((sentence.start, sentence.end),))


def who_is(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """What a name's apposition says: "Harker, the lawyer of the town, ..."."""
    for found in shuffled(rng, _APPOSITION.finditer(passage.text)):
        name, role = flat(found[1]), flat(found[2])
        if name not in passage.persons or not is_whole(passage.text, found.start()) or _VERB.search(role):
            continue
        aside = role.startswith("a") and re.search(r"[a-z]\s+$", passage.text[: found.start()][-8:])
        if aside or not 2 <= words_in(role) <= 8 or _NO_ROLE.search(role.partition(" ")[2]):
            continue
        if passage.speaks(found.start()) or not passage.once(f"{name}, {role}") or "\n\n" in found[0]:
            continue
        question = rng.choice((f"Who is {name}?", f"Who is {name}, as the text puts it?"))
        yield TextQuestion("who_is", question, role, *found.span(2), (found.span(),))


def named(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """The name of something: "a village called Dunwich"."""
    for found in shuffled(rng, _CALLED.finditer(passage.text)):
        thing, name = flat(found[1] or found[2]), flat(found[3])
        if is_name(name) and passage.count(thing) == 1 and "\n\n" not in found[0]:
            question = rng.choice((f"What is the name of the {thing}?", f"What is the {thing} called?"))
            yield TextQuestion("named", question, name, *found.span(3), (found.span(),))


def fact(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """Where and when somebody was born, lived, went, whom he married."""
    stated = [s for s in passage.narrated if _FACT_WORD.search(passage.text, s.start, s.end)]
    found = [
        (m, asked) for rule, asked in _FACT_RULES for s in stated for m in rule.finditer(passage.text, s.start, s.end)
    ]
    for match, asked in shuffled(rng, found):
        name, answer = flat(match[1]), flat(match[2])
        claim = flat(match[0])[: -len(answer)]
        if is_name(name) and (is_name(answer) or answer[-1].isdigit()) and passage.once(claim):
            yield TextQuestion("fact", asked.format(name), answer, *match.span(2), (match.span(),))


def number(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """A number that is left out of its sentence."""
    asked = ('Which number is missing in "{}"?', 'Which number does the text give here: "{}"?')
    for sentence in shuffled(rng, passage.narrated):
        found = list(_NUMBER.finditer(passage.text, sentence.start, sentence.end))
        guessed = found and found[0][0] == "two" and rng.random() < 0.8
        if len(found) == 1 and not guessed:
            yield from _gap(passage, "number", sentence.start, sentence.end, found[0].span(), rng.choice(asked))


def cloze(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """A name, or else a long word, that is left out of its sentence."""
    for sentence in shuffled(rng, passage.narrated):
        said = passage.text[sentence.start : sentence.end]
        if words_in(said) < 9:
            continue
        names = [m for m in _NAME_INSIDE.finditer(said) if flat(m[0]) in passage.known]
        words = [m for m in _WORD_INSIDE.finditer(said) if m[0] not in _EMPTY]
        if names and rng.random() < 0.7:
            place, asked = rng.choice(names).span(), ('Which name is missing in "{}"?', 'Fill in the name: "{}"')
        elif words:
            rarest = min(words, key=lambda m: (passage.words[m[0]], rng.random()))  # no guess from grammar alone
            place, asked = rarest.span(), ('Which word is missing in "{}"?', 'Fill in the word: "{}"')
        else:
            continue
        place = place[0] + sentence.start, place[1] + sentence.start
        yield from _gap(passage, "cloze", sentence.start, sentence.end, place, rng.choice(asked))


def _gap(
    passage: Passage, kind: str, start: int, end: int, place: tuple[int, int], asked: str
) -> Iterator[TextQuestion]:
    """The sentence with a gap, when it can be told from every other and does not give its answer away."""
    before, answer, after = (flat(passage.text[a:b]) for a, b in ((start, place[0]), place, (place[1], end)))
    glue = "" if after[:1] in ".,;:!?)'’" else " "
    if passage.once(passage.text[start:end]) and answer.lower() not in f"{before} {after}".lower():
        shown = f"{before} {BLANK}{glue}{after}".strip()
        yield TextQuestion(kind, asked.format(shown), answer, *place, ((start, end),))


def definition(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """What a term means, where a sentence says so in its own words."""
    for sentence in shuffled(rng, passage.narrated):
        found = _DEFINITION.fullmatch(passage.text, sentence.start, sentence.end)
        if not found:
            continue
        given, meaning = flat(found[1]), flat(found[2])
        *term, verb = given.split()
        bare = term[0] not in ("A", "An")
        if term[-1] in _NOTHING:
            continue
        if bare and (_NO_TERM.match(given) or term[-1].endswith("ly") or not passage.count(term[-1].lower())):
            continue
        if words_in(meaning) < 4 or _SPEAKERS_OWN.search(meaning) or not passage.once(given) or term[-1] in meaning:
            continue
        shown = given.rpartition(" ")[0]
        shown = shown if term[0] in passage.names else shown[0].lower() + shown[1:]
        if verb == "means":
            question = f"What does {shown} mean?"
        else:
            question = rng.choice((f"What {verb} {shown}?", f"What {verb} {shown}, as the text says?"))
        yield TextQuestion("definition", question, meaning, *found.span(2), ((sentence.start, sentence.end),))
