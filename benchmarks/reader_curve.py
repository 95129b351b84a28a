"""What checkpoints of a run can do, measured beside it on what is held back.

    python benchmarks/reader_curve.py RUN BASE DATA [--questions 96] [--once]

waits for checkpoints of a tuning run over readings, answers validation questions greedily with each, and appends a line
of JSON to RUN/probes.jsonl: F1 by set, refusals. So the run itself spends no time on it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, DynamicCache

from app.tasks.scoring import f1, is_refusal
from app.eval.qa import Question
from app.models.turns import Turns
from app.eval.questions import MixConfig, Source, mix
from app.train.pretrain import corpus
from app.train.tune.output import read_base
from app.train.pretrain.corpus import NO_ANSWER
from app.train.tune.lora import add_adapter
from app.train.reading_layout import ChatPieces
from app.train.tune.recipe import LoraRecipe

ANSWER_TOKENS = 24
WAIT_S = 5.0


def held_back(data: Path, count: int, seed: int) -> list[Question]:
    """Validation questions of all sets, a quarter of them unanswerable."""
    sources = [
        Source(p.name, p.text, tuple((q.question, () if q.answer == NO_ANSWER else q.answers) for q in p.questions))
        for p in corpus.passages(data, split="valid")
    ]
    return mix(sources, MixConfig(count=count, unanswerable=0.25, longest_chars=2400, seed=seed))


class Reader:
    """Greedy answers of a stock model, laid out as the app does; questions about one text share its reading."""

    def __init__(self, model: Any, turns: Turns) -> None:
        self.model, self.chat = model, ChatPieces(turns)
        self.tokens = 0  # of the text read last
        self._read: tuple[str, DynamicCache] | None = None

    @torch.no_grad()
    def answer(self, text: str, question: str) -> str:
        chat, cache = self.chat, self._of(text)
        length, said = cache.get_seq_length(), []
        fed = torch.tensor([[*chat.trunk, *chat.asked(question)]])
        while len(said) < ANSWER_TOKENS:
            out = self.model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = int(out.logits[0, -1].argmax())
            if token in (chat.turns.end_id, *chat.start):
                break
            said.append(token)
            fed = torch.tensor([[token]])
        cache.crop(length - cache.get_seq_length())  # below zero: so many tokens go
        return chat.decode(said).strip()

    def _of(self, text: str) -> DynamicCache:
        """Keys and values of a text."""
        if self._read is None or self._read[0] != text:
            ids = [*self.chat.start, *self.chat.text(text.strip() + "\n")]
            self.tokens, cache = len(ids), DynamicCache(config=self.model.config)
            self.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._read = text, cache
        return self._read[1]


def probe(model: Any, turns: Turns, questions: Sequence[Question]) -> dict[str, Any]:
    """F1 (0 to 100) over answerable questions, of each set, and refusals."""
    scores: dict[str, list[float]] = {}
    refused = right = unanswerable = lost = 0
    said, reader = [], Reader(model, turns)
    for question in questions:
        reply = reader.answer(question.text, question.question)
        said.append((question.id, question.question, question.answers[:2], reply))
        refusal = is_refusal(reply)
        refused += refusal
        if question.answers:
            lost += refusal
            score = 0.0 if refusal else max(f1(reply, gold) for gold in question.answers)
            scores.setdefault(question.title, []).append(score)
        else:
            unanswerable += 1
            right += refusal
    every = [score for found in scores.values() for score in found]
    return {
        "f1": round(100 * sum(every) / len(every), 1),
        "by_set": {name: round(100 * sum(found) / len(found)) for name, found in sorted(scores.items())},
        "refusal_f1": round(200 * right / max(1, refused + unanswerable), 1),
        "refused": f"{right} of {unanswerable}; {lost} of {len(every)} wrongly",
        "said": said,
    }


def checkpoints(run: Path, done: set[int], every: int) -> Iterator[tuple[int, Path]]:
    """Checkpoints of a run that are whole, of every so many steps, and were not given yet, oldest first."""
    found = [(int(p.name.split("-")[1]), p) for p in run.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
    yield from ((step, path) for step, path in sorted(found) if step not in done and step % every == 0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("base")
    parser.add_argument("data", type=Path)
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--every", type=int, default=1, help="only checkpoints of every so many steps (all)")
    parser.add_argument("--once", action="store_true", help="the checkpoints that are there, then end")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    base, out = read_base(args.base), args.run / "probes.jsonl"
    questions = held_back(args.data, args.questions, args.seed)
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    turns = Turns(tokenizer, **base.told_before)
    recipe = json.loads((args.run / "run.json").read_text())
    lora = LoraRecipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in recipe["lora"].items()})
    model = base.load(torch.float32)
    done = {json.loads(line)["step"] for line in out.read_text().splitlines()} if out.exists() else set()
    if 0 not in done:
        _tell(out, 0, probe(model, turns, questions))
    adapted = add_adapter(model, lora).eval()
    while True:
        for step, path in checkpoints(args.run, done, args.every):
            weights = load_file(path / "model.safetensors")
            wrong = adapted.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()}, strict=False)
            assert not wrong.unexpected_keys, "the run's recipe made other weights"
            adapted.merge_adapter()
            _tell(out, step, probe(adapted, turns, questions))
            adapted.unmerge_adapter()
            done.add(step)
        if args.once:
            return
        time.sleep(WAIT_S)


def _tell(out: Path, step: int, found: dict[str, Any]) -> None:
    with out.open("a") as file:
        file.write(json.dumps({"step": step, **found}) + "\n")
    print(step, {k: v for k, v in found.items() if k != "said"}, flush=True)


if __name__ == "__main__":
    main()
