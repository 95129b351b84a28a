"""Readings drawn from the material, kind by kind; a row depends on seed and step alone."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.errors import ConfigError
from app.tasks import needles
from app.tasks import questions as text_questions
from app.train.pretrain.corpus import NO_ANSWER, Passage, Question
from app.train.pretrain.quoting import asked_words, sentence_places
from app.train.reading_layout import ChatPieces, Piece, Reading
from app.train.readings.material import Material, answered, pick_set

REGION = 64
LONG_CONTEXT = 2000
ALIKE = 8  # pieces of one text that fit a question best, of which some stand beside the one that answers it
MOST_DRAWS = 100  # for a row: where all that is drawn is too long for the room left, the row stays shorter
SETS = {
    "squad_dev_part_a": 5.0,
    "fairytaleqa_train": 3.5,
    "nq_oracle": 3.5,
    "qamr_dev": 3.0,
    "boolq_2k_train": 2.0,
    "adversarialqa_600": 1.0,
    "covidqa_part_a": 1.0,
    "quoref_200": 0.5,
    "ropes_200": 0.4,
    "pubmedqa_train": 0.2,
}
ONE_QUESTION = ("nq_oracle", "boolq_2k_train", "qamr_dev")  # to a text, or short texts: read several at once
MANY_QUESTIONS = {
    "squad_dev_part_a": 5.0,
    "fairytaleqa_train": 3.0,
    "qamr_dev": 3.0,
    "adversarialqa_600": 1.0,
    "covidqa_part_a": 0.5,
}
LONG_TEXTS = {"squad_dev_part_a": 5.0, "fairytaleqa_train": 2.0, "covidqa_part_a": 0.5}  # of which there are pieces
KINDS = (
    "passage",
    "dense",
    "long",
    "several",
    "gathered",
    "neighbours",
    "story",
    "needles",
    "records",
    "lookup",
    "code",
    "talk",
    "page",
)
MADE = ("story", "needles", "records", "lookup", "code", "talk", "page")
QUOTE = ("Quote the sentence that answers this:", "Which sentence says this?", "Quote:")
REASON = ("Why?", "Give the reason.", "How do you know?")
Turn = tuple[str, str]


@dataclass(frozen=True)
class Limits:
    """How much one reading holds."""

    questions: int = 10
    absent: float = 0.3  # of readings with a question that another text answers
    chained: float = 0.25  # of questions that follow another in one chat
    unanswerable: float = 0.35  # at most so many of a passage's questions
    context: int = 1000  # tokens of parts


DEFAULT = Limits()


class Mixture:
    """Draws readings; `sources` names what `Piece.source` counts."""

    def __init__(self, material: Material, chat: ChatPieces, seed: int = 0, limits: Limits = DEFAULT) -> None:
        self.m, self.chat, self.seed, self.limits = material, chat, seed, limits
        self.sources = ["other", *SETS, *MADE, "refusal", "chat"]
        self.number = {name: i for i, name in enumerate(self.sources)}
        self.worth = {n: [min(8, len(p.questions)) for p in ps] for n, ps in material.passages.items()}
        self.many = {n: [len(answered(p)) ** 2 + 0.01 for p in ps] for n, ps in material.passages.items()}
        self.all = [(p.name, p) for ps in material.passages.values() for p in ps]
        self.texts = material.texts()

    def row(self, step: int, tokens: int, shares: dict[str, float]) -> list[Reading]:
        """Readings of about `tokens` tokens together, the same for the same step; `shares` are those of KINDS.

        Raises:
            ConfigError: nothing that is drawn gives a question.
        """
        rng = random.Random(f"{self.seed}-{step}")
        found: list[Reading] = []
        size = 0
        for _ in range(MOST_DRAWS):
            (kind,) = rng.choices(list(shares), list(shares.values()))
            reading = self.draw(rng, kind)
            if reading is None:
                continue
            if found and size + reading.tokens > tokens:
                if size > 0.75 * tokens or len(found) > 12:
                    return found
                continue
            found.append(reading)
            size += reading.tokens
        if not found:
            raise ConfigError(f"[readings] shares: {', '.join(shares)}: no question in {MOST_DRAWS} draws; add kinds")
        return found

    def draw(self, rng: random.Random, kind: str) -> Reading | None:
        """One reading of a kind of KINDS; None where what was drawn gives no question."""
        return getattr(self, kind)(rng)

    # One passage, many questions.

    def passage(self, rng: random.Random) -> Reading:
        several = {name: weight for name, weight in SETS.items() if name not in ONE_QUESTION}
        name = pick_set(rng, several, self.m.passages)
        passage = rng.choices(self.m.passages[name], self.worth[name])[0]
        branches = self._asked(rng, passage, self.limits.questions)
        if rng.random() < self.limits.absent:
            branches.append(self._absent(rng, [passage]))
        return self._reading([[*self.chat.start, *self._text(passage.text)]], branches, rng)

    def story(self, rng: random.Random) -> Reading:
        passage = rng.choice(self.m.stories)
        branches = self._asked(rng, passage, self.limits.questions + 4)
        if rng.random() < self.limits.absent:
            branches.append(self._absent(rng, [passage]))
        return self._reading([[*self.chat.start, *self._text(passage.text)]], branches, rng)

    def dense(self, rng: random.Random) -> Reading:
        """A passage by how many questions it has, and more of them; of short texts up to three in a row."""
        name = pick_set(rng, MANY_QUESTIONS, self.m.passages)
        short = name == "qamr_dev"
        chosen = rng.choices(self.m.passages[name], self.many[name], k=rng.choice((1, 2, 3)) if short else 1)
        chosen = list({p.text: p for p in chosen}.values())
        branches = [b for p in chosen for b in self._asked(rng, p, 6 if short else self.limits.questions + 4)]
        if rng.random() < self.limits.absent:
            branches.append(self._absent(rng, chosen))
        text = [t for p in chosen for t in self._text(p.text)]
        return self._reading([self.chat.start + text], branches, rng)

    # Several passages side by side, as the second look shows them.

    def several(self, rng: random.Random) -> Reading:
        name = pick_set(rng, {n: SETS[n] for n in ONE_QUESTION}, self.m.passages) if rng.random() < 0.75 else ""
        count = rng.choice((1, 2, 3, 4, 5)) * (2 if name == "qamr_dev" else 1)
        passages = self._some(rng, name, count)
        parts = [self._text(p.text) for p in passages]
        return self._together(rng, passages, parts, whole=rng.random() < 0.3)

    def neighbours(self, rng: random.Random) -> Reading | None:
        """Pieces of one text, as words find them: those that share most words with a question, in any order."""
        if not any(self.texts.get(name) for name in LONG_TEXTS):
            return None
        texts = self.texts[pick_set(rng, LONG_TEXTS, self.texts)]
        pieces = rng.choices(texts, [len(text) for text in texts])[0]
        holding = rng.choices(pieces, [len(answered(p)) + 0.01 for p in pieces])[0]
        if not answered(holding):
            return None
        asked = asked_words(rng.choice(answered(holding)).question)
        apart = [p for p in pieces if p.text not in holding.text and holding.text not in p.text]
        apart.sort(key=lambda p: -len(asked & asked_words(p.text)))
        beside = rng.sample(apart[:ALIKE], min(len(apart), ALIKE, rng.randrange(1, 6)))
        chosen = [holding, *(replace(p, questions=()) for p in beside[1:]), *beside[:1]]
        rng.shuffle(chosen)
        reading = self._together(rng, chosen, [self._text(p.text) for p in chosen], whole=rng.random() < 0.4)
        left = [p for p in apart if p not in beside and answered(p)]
        if reading and left and rng.random() < 2 * self.limits.absent:
            shown = " ".join(p.text for p in chosen).lower()
            question = rng.choice(answered(rng.choice(left)))
            if question.answer.lower() not in shown:
                branch = self._branch([(question.question, NO_ANSWER)], "refusal")
                reading = replace(reading, branches=[*reading.branches, branch])
        return reading

    def long(self, rng: random.Random) -> Reading | None:
        """The same of many passages, as many tokens as an answer may look at."""
        return self.gathered(rng, rng.randrange(6, 11), LONG_CONTEXT)

    def gathered(self, rng: random.Random, count: int = 0, room: int = 0) -> Reading | None:
        """Stretches of whole regions, cut where regions end, of passages and of prose."""
        passages = self._some(rng, "", count or rng.choice((2, 3, 4)))
        parts, kept = [], []
        for passage in passages:
            ids = self._text(passage.text)
            before = self._prose(rng, REGION)[: rng.randrange(REGION)]
            ids = before + ids
            length = -(-len(ids) // REGION) * REGION
            ids = (ids + self._prose(rng, REGION + 8))[:length]
            if length > 4 * REGION:  # only some of it was found
                first = rng.randrange(length // REGION - 3)
                ids = ids[first * REGION : (first + 4) * REGION]
            text = self.chat.decode(ids)
            asked = tuple(q for q in answered(passage) if q.answer in text or q.answer.lower() in ("yes", "no"))
            kept.append(Passage(passage.text, asked, passage.name))
            parts.append(ids)
        for _ in range(rng.randrange(1, 5)):
            parts.append(self._prose(rng, REGION * rng.choice((1, 1, 2, 3))))
            kept.append(Passage("", (), ""))
        order = rng.sample(range(len(parts)), len(parts))
        kept, parts = [kept[i] for i in order], [parts[i] for i in order]
        return self._together(rng, kept, parts, whole=rng.random() < 0.2, room=room)

    def _together(
        self, rng: random.Random, passages: Sequence[Passage], parts: Sequence[list[int]], *, whole: bool, room: int = 0
    ) -> Reading | None:
        chosen, size = [], 0
        for passage, part in zip(passages, parts, strict=True):
            if size + len(part) <= (room or self.limits.context):
                chosen.append((passage, part))
                size += len(part)
        holding = [p for p, _ in chosen if p.questions]
        if not holding:
            return None
        each = max(3, 12 // len(holding))
        branches = [b for p in holding for b in self._asked(rng, p, each)]
        if rng.random() < 1.5 * self.limits.absent:
            branches.append(self._absent(rng, holding))
        laid = [part for _, part in chosen]
        if whole:  # as one text read from its start
            return self._reading([self.chat.start + [t for part in laid for t in part]], branches, rng)
        first = self._prose(rng, REGION - 1) if rng.random() < 0.5 else []
        return self._reading([self.chat.start + first, *laid], branches, rng)

    # Facts that are made, in prose.

    def needles(self, rng: random.Random) -> Reading:
        kind = rng.choice(("passkey", "passkey", "digits", "word", "queries", "several", "tracking", "uuid"))
        if kind == "passkey":
            planted = needles.passes(rng, rng.choice((1, 1, 2, 4, 8)))
        elif kind == "queries":
            planted = needles.queries(rng, rng.randrange(1, 3), rng.randrange(2, 4), rng.choice(("digits", "word")))
        elif kind == "several":
            planted = needles.several_values(rng, rng.randrange(1, 4), rng.randrange(2, 5))
        elif kind == "tracking":
            planted = needles.chains(rng, rng.randrange(1, 3), rng.randrange(1, 4))
        else:
            planted = needles.pairs(rng, rng.randrange(2, 4 if kind == "uuid" else 10), kind)
        facts = [sentence for n in planted for sentence in n.sentences]
        asked = [(n.question, n.answer) for n in rng.sample(planted, min(4, len(planted)))]
        return self._facts(rng, facts, asked, "needles", rng.random() < 0.2)

    def records(self, rng: random.Random) -> Reading:
        """Facts of one form: one of them, who has a value, and how many."""
        kind = rng.choice(("home", "color", "friend", "office", "teacher", "answer", "team"))
        names = rng.sample(needles.NAMES, rng.randrange(4, 13))
        values = rng.sample(needles.NAMES, rng.randrange(2, 5))
        if rng.random() < 0.5:
            names = [name.capitalize() for name in names]
        held = [rng.choice(values) for _ in names]
        form = rng.choice(("The {kind} of {n} is {v}.", "{n}: {kind} {v}", "{n} has the {kind} {v}.", "{n},{v}"))
        facts = [form.format(kind=kind, n=n, v=v) for n, v in zip(names, held, strict=True)]
        if form == "{n},{v}":
            facts.insert(0, f"name,{kind}")
        who, value = rng.randrange(len(names)), rng.choice(values)
        having = [n for n, v in zip(names, held, strict=True) if v == value]
        asked = [(f"What is the {kind} of {names[who]}?", held[who])]
        asked.append((f"Who has the {kind} {value}?", ", ".join(having) or "Nobody"))
        asked.append((f"How many have the {kind} {value}?", f"{', '.join(having) or 'None'}: {len(having)}."))
        missing = next(n for n in needles.NAMES if n not in names and n.capitalize() not in names)
        asked.append((f"What is the {kind} of {missing}?", NO_ANSWER))
        return self._facts(rng, facts, rng.sample(asked, 3), "records", True)

    def _facts(self, rng: random.Random, facts: list[str], asked: list[Turn], name: str, together: bool) -> Reading:
        lines = [self.chat.text(f"{fact}\n") for fact in facts]
        blocks = [[t for line in lines for t in line]] if together else lines
        parts = [self._prose(rng, rng.randrange(16, 2 * REGION)) for _ in range(rng.randrange(1, 4))]
        for block in blocks:
            at = rng.randrange(len(parts))
            parts[at] = parts[at] + self.chat.line + block + self._prose(rng, rng.randrange(0, 48))
        branches = [self._branch([turn], name) for turn in asked]
        if rng.random() < 0.3:
            branches.append(self._branch(asked[:3], name))
        if rng.random() < 0.5:
            return self._reading([self.chat.start + [t for part in parts for t in part]], branches, rng)
        return self._reading([self.chat.start, *parts], branches, rng)

    # What a text asks by itself.

    def lookup(self, rng: random.Random) -> Reading | None:
        text = self._stretch(rng, rng.choice(self.m.prose), rng.randrange(700, 2600))
        made = text_questions.questions(text, rng, most=3)
        asked = [(q.question, q.answer) for q in made if len(q.answer) < 200]
        return self._made(rng, text, asked, "lookup")

    def code(self, rng: random.Random) -> Reading | None:
        text = self._stretch(rng, rng.choice(self.m.code), rng.randrange(600, 1800))
        text = f"module_{rng.randrange(100)}.py (Python)\n{text}"
        asked = [(q.question, q.answer) for q in text_questions.questions(text, rng, most=3)]
        return self._made(rng, text, asked, "code")

    def _made(self, rng: random.Random, text: str, asked: list[Turn], name: str) -> Reading | None:
        asked = rng.sample(asked, min(len(asked), 8))
        if not asked:
            return None
        branches = [self._branch([turn], name) for turn in asked]
        if rng.random() < 0.3:
            branches.append(self._absent(rng, []))
        return self._reading([[*self.chat.start, *self._text(text)]], branches, rng)

    # So that it still talks.

    def talk(self, rng: random.Random) -> Reading:
        talks = [t for t in rng.sample(self.m.talks, min(12, len(self.m.talks))) if not t.text][:3]
        branches = [self._branch([(t.question, t.answer)], "talk") for t in talks]
        return self._reading([self.chat.start], branches, rng)

    def page(self, rng: random.Random) -> Reading | None:
        talk = next((t for t in rng.sample(self.m.talks, min(40, len(self.m.talks))) if t.text), None)
        if talk is None:
            return None
        branch = self._branch([(talk.question, talk.answer)], "page")
        return self._reading([[*self.chat.start, *self._text(talk.text)]], [branch], rng)

    # Pieces of these.

    def _asked(self, rng: random.Random, passage: Passage, most: int) -> list[Piece]:
        """Branches of at most so many questions; some follow others, with pronouns where a name was said before."""
        turns = answered(passage)
        none = [q for q in passage.questions if q.answer == NO_ANSWER]
        turns = rng.sample(turns, min(len(turns), most))
        few = round(len(turns) * self.limits.unanswerable) + (rng.random() < 0.5)
        turns += rng.sample(none, min(len(none), few))
        rng.shuffle(turns)
        branches = []
        while turns:
            question = turns.pop()
            if turns and rng.random() < self.limits.chained:
                following = turns.pop()
                asked = self._said_before(question, following, passage.text)
                chain = [self._turn(rng, question, passage), (asked, self._form(following.answer))]
                branches.append(self._branch(chain, "chat" if asked != following.question else passage.name))
            else:
                name = "refusal" if question.answer == NO_ANSWER else passage.name
                branches.append(self._branch([self._turn(rng, question, passage)], name))
        return branches

    def _turn(self, rng: random.Random, question: Question, passage: Passage) -> Turn:
        """A question and its answer, now and then as a quotation or with the reason."""
        asked, answer = question.question, self._form(question.answer)
        if rng.random() > 0.06 or answer == NO_ANSWER:
            return asked, answer
        sentence = _sentence(passage.text, question)
        if not sentence:
            return asked, answer
        if answer in ("Yes.", "No."):
            return f"{asked} {rng.choice(REASON)}", f"{answer} {sentence}"
        return f"{rng.choice(QUOTE)} {asked}", f'"{sentence}"'

    @staticmethod
    def _form(answer: str) -> str:
        return {"yes": "Yes.", "no": "No.", "maybe": "Maybe."}.get(answer.lower(), answer)

    @staticmethod
    def _said_before(first: Question, second: Question, text: str) -> str:
        """The second question with a pronoun for a name that the first one has too."""
        names = re.findall(r"(?<=\s)[A-Z][a-z]+(?: [A-Z][a-z]+)*", second.question)
        for name in names:
            if name not in f"{first.question} {first.answer}":
                continue
            after = " ".join(text[m.end() : m.end() + 160] for m in re.finditer(re.escape(name), text)).lower()
            counts = {p: len(re.findall(rf"\b{p}\b", after)) for p in ("he", "she", "they", "it")}
            pronoun = max(counts, key=lambda p: counts[p])
            if counts[pronoun]:
                own = {"he": "his", "she": "her", "they": "their", "it": "its"}[pronoun]
                asked = re.sub(rf"(?:\bthe )?{re.escape(name)}(?:'s|’s)", own, second.question)
                return re.sub(rf"(?:\bthe )?{re.escape(name)}", pronoun, asked)
        return second.question

    def _absent(self, rng: random.Random, passages: Sequence[Passage]) -> Piece:
        """A question that another text answers: half the time one of the same set, as alike as there is."""
        name = passages[0].name if passages and rng.random() < 0.5 else ""
        texts = " ".join(p.text for p in passages)
        for _ in range(20):
            other = rng.choice(self.m.passages[name]) if name in self.m.passages else rng.choice(self.all)[1]
            asked = answered(other)
            if asked and other.text not in texts and texts not in other.text:
                question = rng.choice(asked)
                if question.answer.lower() not in texts.lower():
                    return self._branch([(question.question, NO_ANSWER)], "refusal")
        return self._branch([("What is the pass key?", NO_ANSWER)], "refusal")

    def _branch(self, turns: Sequence[Turn], name: str) -> Piece:
        return self.chat.branch(turns, self.number.get(name, 0))

    def _reading(self, parts: Sequence[list[int]], branches: Sequence[Piece], rng: random.Random) -> Reading | None:
        kept = [b for b in branches if len(b.ids) <= 400]
        return Reading(parts, self.chat.trunk, rng.sample(kept, len(kept))) if kept else None

    def _some(self, rng: random.Random, name: str, count: int) -> list[Passage]:
        found = {}
        for _ in range(count):
            chosen = rng.choice(self.m.passages[name or pick_set(rng, SETS, self.m.passages)])
            found[chosen.text] = chosen
        return list(found.values())

    def _text(self, text: str) -> list[int]:
        return self.chat.text(text.strip() + "\n")

    def _stretch(self, rng: random.Random, text: str, chars: int) -> str:
        start = text.rfind("\n", 0, rng.randrange(max(1, len(text) - chars))) + 1
        return text[start : start + chars]

    def _prose(self, rng: random.Random, tokens: int) -> list[int]:
        if not tokens:
            return []
        return self.chat.text(self._stretch(rng, rng.choice(self.m.prose), 6 * tokens + 40))[:tokens]


def _sentence(text: str, question: Question) -> str:
    """The sentence of a text that holds the answer and shares most words with the question; "" without one."""
    asked = asked_words(question.question)
    best, found = 0, ""
    plain = question.answer.lower() in ("yes", "no", "maybe")
    for start, end in sentence_places(text):
        sentence = text[start:end].strip()
        if (plain or question.answer in sentence) and (shared := len(asked & asked_words(sentence))) > best:
            best, found = shared, sentence
    return found if len(found) < 400 else ""
