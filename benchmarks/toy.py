"""The toy world of the tuning benchmarks: documents whose context is known to help, and a base model that reads them.

    python benchmarks/toy.py

trains the base model at short lengths and writes it to fixtures/phrases/base.safetensors. A document repeats phrases of
12 symbols from a dictionary of its own, in random order: a phrase that was seen can be continued, and nothing else can.

The base starts with copying heads (pretrain/induction.py). From noise it learns another trick first: since all phrases
are equally long, to look back by multiples of 12, 64 symbols far at most after 12 M tokens.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from app.train.pretrain.induction import lay_down_induction

BASE = Path(__file__).parent / "fixtures" / "phrases" / "base.safetensors"
SYMBOLS, PHRASE = 64, 12
DICTIONARY = (8, 24)
BASE_TOKENS = 256


@dataclass(frozen=True)
class BaseTraining:
    """How the base model is trained.

    Attributes:
        lengths: of documents; each step has one of them.
        step_tokens: of one step, about.
    """

    steps: int = 1200
    step_tokens: int = 4096
    lengths: tuple[int, ...] = (128, 160, 192, 224, 256)
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    seed: int = 0


def document(tokens: int, generator: torch.Generator) -> Tensor:
    """[T] symbols; it begins anywhere in a phrase."""
    low, high = DICTIONARY
    size = int(torch.randint(low, high + 1, (1,), generator=generator))
    phrases = torch.randint(SYMBOLS, (size, PHRASE), generator=generator)
    order = torch.randint(size, (tokens // PHRASE + 2,), generator=generator)
    start = int(torch.randint(PHRASE, (1,), generator=generator))
    return phrases[order].flatten()[start : start + tokens]


def documents(count: int, tokens: int, generator: torch.Generator) -> Tensor:
    """[B, T] documents, each with a dictionary of its own."""
    return torch.stack([document(tokens, generator) for _ in range(count)])


def new_model(seed: int = 0) -> LlamaForCausalLM:
    """0.23 M parameters, two layers."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SYMBOLS,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=BASE_TOKENS,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def base_model(path: Path = BASE) -> LlamaForCausalLM:
    """The base model as it was kept."""
    model = new_model()
    model.load_state_dict(load_file(path), strict=False)
    model.tie_weights()
    return model


def losses(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """[B, T - 1] nats of every token but the first."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")


def optimizer(model: LlamaForCausalLM, rate: float, decay: float, warmup: int, steps: int, least: float):
    """AdamW and its schedule: a linear rise, then a linear fall to `least` of the rate."""
    adam = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=decay)

    def share(step: int) -> float:
        return min((step + 1) / warmup, 1 - (1 - least) * max(0, step - warmup) / max(1, steps - warmup))

    return adam, torch.optim.lr_scheduler.LambdaLR(adam, share)


def train_base(config: BaseTraining) -> LlamaForCausalLM:
    """Train the base, telling how it goes."""
    model = new_model(config.seed).train()
    generator = torch.Generator().manual_seed(config.seed)
    lay_down_induction(model, generator)
    adam, schedule = optimizer(
        model, config.learning_rate, config.weight_decay, config.warmup_steps, config.steps, least=0.05
    )
    started, seen = time.monotonic(), 0
    for step in range(config.steps):
        tokens = config.lengths[int(torch.randint(len(config.lengths), (1,), generator=generator))]
        ids = documents(config.step_tokens // tokens, tokens, generator)
        loss = losses(model, ids).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        adam.zero_grad()
        seen += ids.numel()
        if step % 50 == 0 or step == config.steps - 1:
            print(f"step {step}, {seen} tokens, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)
    return model.eval()


def keep(model: LlamaForCausalLM, path: Path) -> None:
    """Write the weights, whole or not at all; tied ones once."""
    weights = {name: x.detach().contiguous() for name, x in model.state_dict().items() if name != "lm_head.weight"}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    save_file(weights, new)
    new.replace(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=BaseTraining.steps)
    parser.add_argument("--output", type=Path, default=BASE)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep(train_base(BaseTraining(steps=args.steps)), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
