"""What a model in training can do on texts and questions that are held back, measured now and then."""

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback

from app.tasks.scoring import f1
from app.train.attention import installed_probe
from app.train.pretrain.corpus import NO_ANSWER, Passage
from app.train.pretrain.data import SampleMaker

log = logging.getLogger(__name__)
TASKS = ("passkey", "pairs", "questions", "missing")
TOLD = "probes.json"  # beside the best checkpoint: what it could do
SAMPLES = 8  # of each task
ASKED = 80  # questions that are answered greedily
ANSWER_TOKENS = 12
TEXT_WEIGHT = 1.0
ANSWER_WEIGHT = 4.0  # and above


class Probes(TrainerCallback):
    """Probe every few steps, log what came of it, and keep the checkpoint with the fewest nats on answers.

    Args:
        maker: draws from what is held back.
        passages: of which questions are answered greedily.
        tokens: length of the probes.
        folder: where the best checkpoint is kept; `best_step` is when it was reached.
    """

    def __init__(self, maker: SampleMaker, passages: Sequence[Passage], tokens: int, every: int, folder: Path) -> None:
        self.maker, self.tokens, self.every, self.folder = maker, tokens, every, folder
        rng = random.Random("probes")
        asked = [(p.text, q) for p in passages for q in p.questions if q.answer != NO_ANSWER]
        self.asked = rng.sample(asked, min(ASKED, len(asked)))
        told = folder / TOLD
        best = json.loads(told.read_text()) if told.exists() else {"answer_nats": float("inf"), "step": 0}
        self.best, self.best_step = best["answer_nats"], best["step"]

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % self.every and state.global_step < state.max_steps or not state.is_world_process_zero:
            return
        found = self.measure(model)
        log.info("step %d: %s", state.global_step, ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
        if found["answer_nats"] < self.best:
            self.best, self.best_step = found["answer_nats"], state.global_step
            model.save_pretrained(self.folder)
            (self.folder / TOLD).write_text(json.dumps({"step": state.global_step, **found}, indent=1) + "\n")

    @torch.no_grad()
    def measure(self, model) -> dict[str, float]:
        """Nats of text and of answers, shares of answers that are right, F1 of greedy answers (0 to 100)."""
        training, found, nats = model.training, {}, []
        model.eval()
        if (regions := installed_probe(model)) is not None:
            regions.rows = None  # those of the last step; the next sets its own
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            found["text_nats"] = self._score(model, "text")[0]
            for task in TASKS:
                of_answers, found[task] = self._score(model, task)
                nats.append(of_answers)
            found["f1"] = self._f1(model)
        model.train(training)
        return {"answer_nats": sum(nats) / len(nats), **found}

    def _score(self, model, task: str) -> tuple[float, float]:
        """(nats per token of what counts, share of answers all of whose tokens are the likeliest)."""
        total, count, right, answers = 0.0, 0, 0, 0
        for seed in range(SAMPLES):
            sample = self.maker.draw(random.Random(f"probe-{task}-{seed}"), self.tokens, {task: 1.0})
            ids, weights = torch.from_numpy(sample.token_ids), torch.from_numpy(sample.weights)
            counts = weights[1:] >= (TEXT_WEIGHT if task == "text" else ANSWER_WEIGHT)
            logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0, :-1][counts]
            target = ids[1:][counts].to(model.device)
            total += float(F.cross_entropy(logits.float(), target, reduction="sum"))
            count += len(target)
            hits = torch.zeros(len(counts), dtype=torch.bool)
            hits[counts] = (logits.argmax(-1) == target).cpu()
            for start, end in runs(counts):
                right += bool(hits[start:end].all())
                answers += 1
        return total / max(count, 1), right / max(answers, 1)

    def _f1(self, model) -> float:
        total = 0.0
        for text, question in self.asked:
            said = self._answer(model, text, question.question)
            total += max(f1(said, answer) for answer in question.answers or (question.answer,))
        return 100 * total / len(self.asked)

    def _answer(self, model, text: str, question: str) -> str:
        """Greedy, without a cache: the attention of training has none."""
        maker = self.maker
        document = maker.encode(text.strip() + "\n")[: self.tokens - 64]
        ids = [maker.bos, *document, maker.user, *maker.encode(question), maker.assistant]
        length = len(ids)
        while len(ids) < length + ANSWER_TOKENS:
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1).logits
            following = int(logits[0, -1].argmax())
            if following == maker.end:
                break
            ids.append(following)
        return maker.decode(ids[length:])


def runs(marked: Tensor) -> list[tuple[int, int]]:
    """(start, end) of the runs of True in [T] bool."""
    edges = torch.diff(F.pad(marked.int(), (1, 1)))
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True))
