"""Probes of a model in training: what counts as right, and that the best checkpoint stays."""

import random
from types import SimpleNamespace

import pytest
import torch

from app.train.cli import sample_maker
from app.train.pretrain.probes import Probes, runs
from app.train.pretrain.trainer import PretrainingRecipe, Stage, new_model, pretrain
from tests.train.pretrain.test_trainer import SHARES, TINY


@pytest.fixture(scope="module")
def held_back(data, tokenizer, tmp_path_factory):
    return sample_maker(data, "valid", tokenizer, tmp_path_factory.mktemp("cache"))


class Oracle(torch.nn.Module):
    """Knows every sample: gives the next token of a text that it was shown a certain logit."""

    device = torch.device("cpu")

    def __init__(self, maker, texts) -> None:
        super().__init__()
        self.maker, self.texts = maker, texts

    def get_decoder(self):
        return SimpleNamespace(layers=[SimpleNamespace(self_attn=None)])

    def forward(self, input_ids, use_cache=False, logits_to_keep=0):
        ids = input_ids[0].tolist()
        whole = next((text for text in self.texts if text[: len(ids)] == ids), ids)
        following = torch.tensor([*whole[1:], self.maker.end][: len(ids)])
        logits = torch.nn.functional.one_hot(following, self.maker.vocabulary)[None] * 40.0
        return SimpleNamespace(logits=logits[:, -1:] if logits_to_keep else logits)


def test_runs_of_what_is_marked():
    assert runs(torch.tensor([True, True, False, True])) == [(0, 2), (3, 4)]
    assert runs(torch.zeros(3, dtype=torch.bool)) == []


def test_who_knows_every_answer_is_right_everywhere(held_back, tmp_path):
    probes = Probes(held_back, held_back.passages, 128, 1, tmp_path)
    asked = [
        [held_back.bos, *held_back.encode(text.strip() + "\n"), held_back.user, *held_back.encode(q.question)]
        + [held_back.assistant, *held_back.encode(q.answer), held_back.end]
        for text, q in probes.asked
    ]
    found = probes.measure(Oracle(held_back, asked))
    assert {name: found[name] for name in ("passkey", "pairs", "questions", "missing")} == dict.fromkeys(
        ("passkey", "pairs", "questions", "missing"), 1.0
    )
    assert found["f1"] == 100 and found["answer_nats"] < 1e-3 and found["text_nats"] < 1e-3


def test_who_knows_nothing_is_wrong(held_back, tokenizer, tmp_path):
    model = new_model(PretrainingRecipe(**TINY, stages=(Stage(128, 1, 1),)), tokenizer)
    found = Probes(held_back, held_back.passages, 128, 1, tmp_path).measure(model)
    assert found["answer_nats"] == pytest.approx(9, abs=0.5) and found["passkey"] == 0 and found["f1"] == 0
    assert model.training


def test_the_best_checkpoint_is_kept(held_back, maker, tokenizer, tmp_path, monkeypatch):
    """The second of three probes is the best; what is kept is what the model was then."""
    nats = iter([3.0, 1.0, 2.0])
    seen = []

    def measure(self, model):
        seen.append(model.lm_head.weight.detach().clone())
        return {"answer_nats": next(nats)}

    monkeypatch.setattr(Probes, "measure", measure)
    probes = Probes(held_back, held_back.passages, 64, 2, tmp_path / "best")
    config = PretrainingRecipe(**TINY, shares=SHARES, stages=(Stage(64, 1, 5),))
    pretrain(config, maker, tokenizer, tmp_path / "run", [probes])
    kept = type(new_model(config, tokenizer)).from_pretrained(tmp_path / "best", dtype=torch.float32)
    again = Probes(held_back, held_back.passages, 64, 2, tmp_path / "best")
    assert again.best == 1.0  # a run that goes on does not replace it by something worse
    assert len(seen) == 3 and torch.equal(kept.lm_head.weight, seen[1]) and not torch.equal(seen[1], seen[2])


def test_probes_leave_the_region_loss_alone(held_back, maker, tokenizer, tmp_path):
    """A probe between steps looks at texts of another shape than the rows that the loss was taken from."""
    stages = (Stage(256, 2, 3, region_loss=0.3),)
    config = PretrainingRecipe(**TINY, shares=SHARES, stages=stages)
    plain = pretrain(config, maker, tokenizer, tmp_path / "plain")
    probes = Probes(held_back, held_back.passages, 64, 1, tmp_path / "best")
    probed = pretrain(config, maker, tokenizer, tmp_path / "probed", [probes])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), probed.parameters(), strict=True))


def test_questions_come_from_what_is_held_back(held_back, maker):
    assert [p.text for p in held_back.passages] == ["Bo keeps a brown dog."]
    assert all("Bo" not in p.text for p in maker.passages)
    assert maker.draw(random.Random(0), 64, {"story": 1.0}).task == "story"
