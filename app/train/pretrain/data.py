"""Training samples for the shipped model: text, and tasks whose answer stands somewhere in a text.

A task sample is what the app makes of a document and a chat: BOS, the document, then turns in the chat template.
Answer tokens weigh more than text, because retrieval must be learned from few of them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import InputError
from app.tasks import needles
from app.tasks import questions as text_questions
from app.train.pretrain import corpus
from app.train.pretrain.corpus import NO_ANSWER, Passage, Question, Seen
from app.train.pretrain.quoting import inverse_cloze
from app.train.pretrain.tokenizer import ASSISTANT, BOS, END, MARKERS, PAD, USER

TASKS = (
    "text",
    "copying",
    "passkey",
    "pairs",
    "queries",
    "tracking",
    "words",
    "records",
    "recall",
    "questions",
    "inverse_cloze",
    "missing",
    "lookup",
    "code",
    "story",
    "counting",
    "talk",
)
MAX_TURNS = 4
ANSWER_WEIGHT = 8.0  # of each token
FINDING_WEIGHT = 24.0  # of the first token of what is taken from the text: it has to be found, the rest is copying
LONGEST_TURN = 96  # tokens of a question and its answer
COMMON_LOOKUPS = ("cloze", "continue", "next_sentence", "quote")  # any text has many of them
LOOKUPS = (*COMMON_LOOKUPS, "who_said", "who_did", "who_is", "named", "fact", "number", "definition", "chapter_title")


@dataclass(frozen=True)
class Sample:
    """One sequence. `weights` is the loss weight of predicting each token; 0 for padding."""

    task: str
    token_ids: np.ndarray  # [T] int64
    weights: np.ndarray  # [T] float32


class BookTokens:
    """All books as one array of token ids, tokenised once and kept in a cache file.

    Args:
        without: paragraphs that share a run of words with these are left out.
    """

    def __init__(self, data: Path, split: str, tokenizer, cache: Path, without: Seen | None = None) -> None:
        path = cache / f"books-{split}{'-apart' if without else ''}.npy"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            texts = [_apart(book.text, without) if without else book.text for book in corpus.books(data, split)]
            if not texts:
                raise InputError(f"{data}/books: no book of the split {split}; see its index.tsv")
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            np.save(path, np.concatenate([np.asarray(i, dtype=np.uint16) for i in ids]))
        self.ids = np.load(path, mmap_mode="r")
        vocabulary = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.ends_line = np.array([token.endswith("Ċ") for token in vocabulary])

    def excerpt(self, rng: random.Random, tokens: int) -> np.ndarray:
        """A run of `tokens` ids that begins at a line where one is near."""
        start = rng.randrange(len(self.ids) - tokens - 256)
        breaks = np.flatnonzero(self.ends_line[self.ids[start : start + 200]])
        start += int(breaks[0]) + 1 if len(breaks) else 0
        return np.asarray(self.ids[start : start + tokens], dtype=np.int64)


def _apart(text: str, seen: Seen) -> str:
    """The paragraphs that share no run of words with what was seen; short ones cannot."""
    return "\n\n".join(part for part in text.split("\n\n") if len(part) < 48 or not seen.shares(part))


def _repeating(rng: random.Random, count: int) -> list[str]:
    """Distinct five-digit numbers of two or three different digits: those are copied wrong most often."""
    found: set[str] = set()
    while len(found) < count:
        digits = rng.sample("0123456789", rng.choice((2, 3)))
        number = "".join(rng.choices(digits, k=5))
        if number[0] != "0":
            found.add(number)
    return sorted(found, key=lambda _: rng.random())


def as_in_text(answer: str) -> str:
    """An answer with the tokens that it has in a text, where a blank stands before it.

    Without one " Canada" is "C", "an" and "ada", and what attention finds in the text cannot be copied.
    """
    return answer if answer in corpus.SAID else f" {answer}"


class SampleMaker:
    """Draws samples of a given length, task by task."""

    def __init__(
        self,
        books: BookTokens,
        passages: Sequence[Passage],
        tokenizer,
        *,
        talks: Sequence[Question] = (),
        stories: Sequence[Passage] = (),
        code: Sequence[str] = (),
    ) -> None:
        """Sequences that are empty must have no share; passages may not be empty."""
        self._more = {"talk": talks, "story": stories, "code": code}
        self.books = books
        self.passages = passages
        self.tricky = [p for p in passages if any(q.answer == NO_ANSWER for q in p.questions)]
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        self.decode: Callable[[Sequence[int]], str] = tokenizer.decode
        ids = tokenizer.convert_tokens_to_ids
        self.pad, self.bos, self.end, self.user, self.assistant = map(ids, (PAD, BOS, END, USER, ASSISTANT))
        self.first_word, self.vocabulary = len(MARKERS), len(tokenizer)
        self.repeat = self.encode(needles.REPEAT_FILLER + "\n")

    def draw(self, rng: random.Random, tokens: int, shares: dict[str, float]) -> Sample:
        """One sample of exactly `tokens` tokens; `shares` gives each task's share (see TASKS)."""
        (task,) = rng.choices(list(shares), list(shares.values()))
        if not self._more.get(task, True):
            raise InputError(f"a share of {task}, but the data folder has nothing for it; leave the share out")
        ids, weights = getattr(self, task)(rng, tokens)
        ids, weights = ids[:tokens], weights[:tokens]
        room = tokens - len(ids)
        return Sample(
            task,
            np.asarray(ids + [self.pad] * room, dtype=np.int64),
            np.asarray(weights + [0.0] * room, dtype=np.float32),
        )

    def text(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        return [self.bos, *self.books.excerpt(rng, tokens - 1).tolist()], [1.0] * tokens

    def copying(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """A run of random tokens or of text, again and again: what teaches to look back at all."""
        length = rng.randrange(4, max(5, min(tokens // 2, 128)))
        if rng.random() < 0.7:  # the earlier a merge was learned, the more frequent its token
            last = rng.choice((self.first_word + 256, self.first_word + 1024, self.vocabulary))
            run, first = [rng.randrange(self.first_word, last) for _ in range(length)], 0.0
        else:
            run, first = self.books.excerpt(rng, length).tolist(), 1.0
        times = tokens // length + 1
        return [self.bos, *(run * times)], [0.0, *([first] * length), *([1.0] * (length * (times - 1)))]

    def passkey(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        keys = needles.draw(rng, min(rng.choice((1, 1, 2, 3, 5, 8, 12)), max(1, tokens // 64)))
        if rng.random() < 0.5:
            keys = [
                needles.Passkey(number, key.name) for number, key in zip(_repeating(rng, len(keys)), keys, strict=True)
            ]
        facts = [self.encode(key.sentence + "\n") for key in keys]
        asked = [(key.question, key.answer) for key in rng.sample(keys, min(len(keys), 2 * MAX_TURNS))]
        return self._task(rng, tokens, facts, asked, prose=rng.random() < 0.8)

    def pairs(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Keys with one or several values each, scattered or in one place."""
        kind = rng.choice((*needles.PAIR_KINDS, "several"))
        if kind == "several":
            planted = needles.several_values(rng, rng.randrange(1, 4), rng.randrange(2, 5))
        else:
            each = 96 if kind == "uuid" else 24
            planted = needles.pairs(rng, rng.randrange(1, max(3, min(40, tokens // 2 // each))), kind)
        return self._needles(rng, tokens, planted, together=rng.random() < 0.3)

    def queries(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Several keys asked for at once."""
        kind = "digits" if rng.random() < 0.3 else "word"
        return self._needles(rng, tokens, needles.queries(rng, rng.randrange(1, 4), rng.randrange(2, 5), kind))

    def words(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """A list of words, asked for those that come most often."""
        if rng.random() < 0.5:
            times = {
                "often": rng.randrange(2, 6),
                "times": 8,
                "others": max(2, min(20, tokens // 24)),
                "other_times": 2,
            }
            return self._needles(rng, tokens, needles.common_words(rng, 1, **times))
        many = max(40, min(120, tokens // 8))
        return self._needles(rng, tokens, needles.frequent_words(rng, 1, words=many, asked=3))

    def tracking(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Variables set to variables: an answer needs several steps of looking back."""
        return self._needles(rng, tokens, needles.chains(rng, rng.randrange(1, 4), rng.randrange(1, 5)))

    def _needles(
        self, rng: random.Random, tokens: int, planted: Sequence[needles.Needle], *, together: bool = False
    ) -> tuple[list[int], list[float]]:
        asked = [(n.question, n.answer) for n in rng.sample(planted, min(len(planted), 2 * MAX_TURNS))]
        facts = [self.encode(sentence + "\n") for needle in planted for sentence in needle.sentences]
        if together:
            facts = [[token for fact in facts for token in fact]]
        return self._task(rng, tokens, facts, asked, prose=True)

    def records(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Facts of one form ("The color of X is Y."), one or two asked."""
        kinds = ("number", "code", "friend", "color", "secret word", "home")
        names = rng.sample(needles.NAMES, min(len(needles.NAMES), max(2, min(24, tokens // 48))))
        kind = rng.choice(kinds)
        values = [
            str(rng.randrange(10, 10_000)) if kind in ("number", "code") else rng.choice(needles.NAMES) for _ in names
        ]
        facts = [self.encode(f"The {kind} of {n} is {v}.\n") for n, v in zip(names, values, strict=True)]
        chosen = rng.sample(range(len(names)), 2)
        asked = [(f"What is the {kind} of {names[i]}?", f"The {kind} of {names[i]} is {values[i]}.") for i in chosen]
        if rng.random() < 0.5:
            return self._task(rng, tokens, facts, asked, prose=True)
        return self._task(rng, tokens, [[t for fact in facts for t in fact]], asked, prose=True)

    def recall(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Continue a line that stands in the text: copying over a distance."""
        turn = min(96, tokens // 3)
        text = self.books.excerpt(rng, tokens - turn - 1).tolist()
        length = rng.randrange(8, max(9, min(48, turn - 20)))
        start = rng.randrange(max(1, len(text) - length))
        quote = text[start : start + length]
        cut = rng.randrange(3, max(4, min(12, length - 2)))
        ids, weights = [self.bos, *text], [1.0] * (len(text) + 1)
        question = [self.user, *self.encode("Continue: "), *quote[:cut]]
        answer = [*quote[cut:], self.end]
        ids += [*question, self.assistant, *answer]
        weights += [0.0] * (len(question) + 1) + [4.0] * len(answer)
        return ids, weights

    def questions(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Questions about several passages, alone or inside a book, which answer them."""
        count = min(rng.choice((1, 4, 16, 16)), len(self.passages))
        return self._about(rng, tokens, rng.sample(self.passages, count), [])

    def missing(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """The same, and one question that the text does not answer: about a passage that is not there, or is."""
        if self.tricky and rng.random() < 0.5:
            passage = rng.choice(self.tricky)
            asked = rng.choice([q.question for q in passage.questions if q.answer == NO_ANSWER])
            return self._about(rng, tokens, [passage], [(asked, NO_ANSWER)])
        absent, *others = rng.sample(self.passages, min(rng.randrange(1, 9), len(self.passages)))
        others = [p for p in others if p.text not in absent.text and absent.text not in p.text]
        return self._about(rng, tokens, others, [(rng.choice(absent.questions).question, NO_ANSWER)])

    def _about(
        self, rng: random.Random, tokens: int, passages: Sequence[Passage], asked: Sequence[tuple[str, str]]
    ) -> tuple[list[int], list[float]]:
        """Some answers of as many of the passages as there is room for, besides what is asked already."""
        asked, facts = list(asked), []
        room = tokens - 2 - self._turn_tokens(asked)
        for passage in passages:
            answered = [(q.question, as_in_text(q.answer)) for q in passage.questions if q.answer != NO_ANSWER]
            turns = rng.sample(answered, min(len(answered), 2 * MAX_TURNS))
            text = self.encode(passage.text.strip() + "\n")
            while turns and len(text) + self._turn_tokens(turns) > room:
                turns = turns[:-1]
            if len(text) + self._turn_tokens(turns) <= room:  # without turns it only stands in the way, as texts do
                facts.append(text)
                asked += turns
                room -= len(text) + self._turn_tokens(turns)
        if room < 0 or not asked:
            return self.text(rng, tokens)
        return self._task(rng, tokens, facts, rng.sample(asked, len(asked)), prose=True)

    def lookup(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Questions that a stretch of a book answers itself (app/tasks/questions), about as many kinds as there are."""
        text = self.decode(self.books.excerpt(rng, min(tokens // 2, rng.randrange(128, 640))).tolist())
        made = text_questions.questions(text, rng, kinds=LOOKUPS, most=3)
        made.sort(key=lambda question: question.kind in COMMON_LOOKUPS)
        return self._lookups(rng, tokens, text, made)

    def inverse_cloze(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Some words of a sentence ask for others, in a stretch of a book (app/train/pretrain/quoting.py)."""
        text = self.decode(self.books.excerpt(rng, rng.randrange(tokens // 8, tokens * 3 // 4)).tolist())
        return self._lookups(rng, tokens, text, list(inverse_cloze(text, rng)), most=4 * MAX_TURNS)

    def code(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """The same of a stretch of a source file: where names are defined, arguments, values, what follows."""
        text = self._more["code"][rng.randrange(len(self._more["code"]))]
        length = 3 * min(tokens // 2, rng.randrange(128, 640))  # about 3 characters a token
        start = text.rfind("\n", 0, rng.randrange(max(1, len(text) - length // 2))) + 1
        text = f"module_{rng.randrange(100)}.py (Python)\n{text[start : start + length]}\n"
        return self._lookups(rng, tokens, text, text_questions.questions(text, rng, most=4))

    def _lookups(
        self,
        rng: random.Random,
        tokens: int,
        text: str,
        made: Sequence[text_questions.TextQuestion | Question],
        most: int = 2 * MAX_TURNS,
    ) -> tuple[list[int], list[float]]:
        fact, asked = self.encode(text), []
        room = tokens - 2 - len(fact)
        for question in made[:most]:
            turn = (question.question, as_in_text(question.answer))
            if (size := self._turn_tokens([turn])) <= min(room, LONGEST_TURN):
                asked.append(turn)
                room -= size
        if not asked:
            return self.text(rng, tokens)
        return self._task(rng, tokens, [fact], rng.sample(asked, len(asked)), prose=True)

    def story(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """A tiny made world: who is where, who has what, what came before."""
        passage = self._more["story"][rng.randrange(len(self._more["story"]))]
        return self._about(rng, tokens, [passage], [])

    def counting(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Which of a few records have a value, and how many: the names first, so that counting is reading."""
        count = max(2, min(rng.randrange(3, 12), (tokens - 96) // 16))
        names = rng.sample(needles.NAMES, count)
        values = rng.sample(needles.NAMES, rng.randrange(1, 4))
        held = [rng.choice(values) for _ in names]
        facts = [self.encode(f"The home of {n} is {v}.\n") for n, v in zip(names, held, strict=True)]
        asked = []
        for value in values:
            found = [name for name, v in zip(names, held, strict=True) if v == value]
            asked.append((f"How many have the home {value}?", f"{', '.join(found) or 'none'}: {len(found)}."))
        return self._task(rng, tokens, [[t for fact in facts for t in fact]], asked[:2], prose=True)

    def _turn_tokens(self, turns: Sequence[tuple[str, str]]) -> int:
        return sum(len(self.encode(question)) + len(self.encode(answer)) + 3 for question, answer in turns)

    def talk(self, rng: random.Random, tokens: int) -> tuple[list[int], list[float]]:
        """Short instructions and answers without a document, one after the other."""
        ids, weights = [self.bos], [0.0]
        while len(ids) < tokens:
            asked = rng.choice(self._more["talk"])
            question = [self.user, *self.encode(asked.question), self.assistant]
            answer = [*self.encode(asked.answer), self.end]
            ids += question + answer
            weights += [0.2] * len(question) + [1.0] * len(answer)
        return ids, weights

    def _task(
        self,
        rng: random.Random,
        tokens: int,
        facts: list[list[int]],
        asked: Sequence[tuple[str, str]],
        *,
        prose: bool,
    ) -> tuple[list[int], list[float]]:
        """A document that holds `facts` at random places in filler, then the turns `asked`."""
        turns: list[int] = []
        weights: list[float] = []
        for question, answer in asked:
            q = [self.user, *self.encode(question), self.assistant]
            a = [*self.encode(answer), self.end]
            turns += q + a
            finding = FINDING_WEIGHT if answer.startswith(" ") else ANSWER_WEIGHT
            weights += [0.2] * (len(q) - 1) + [0.0, finding] + [ANSWER_WEIGHT] * (len(a) - 1)
        room = max(0, tokens - 1 - sum(map(len, facts)) - len(turns))
        if prose:
            filler = self.books.excerpt(rng, room).tolist() if room else []
            cuts = np.flatnonzero(self.books.ends_line[filler]) + 1 if room else np.array([], int)
        else:
            filler = (self.repeat * (room // len(self.repeat) + 1))[:room]
            cuts = np.arange(len(self.repeat), room, len(self.repeat))
        places = np.concatenate([[0], cuts])  # at the start of lines
        weight = 1.0 if prose else 0.05
        ids, text_weights = [self.bos], [0.0]
        last = 0
        for place, fact in sorted((int(places[rng.randrange(len(places))]), fact) for fact in facts):
            ids += filler[last:place] + fact
            text_weights += [weight] * (place - last) + [0.3] * len(fact)
            last = place
        ids += filler[last:]
        text_weights += [weight] * (room - last)
        return ids + turns, text_weights + weights
