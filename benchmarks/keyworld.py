"""A made world in which a small model finds keys: the base of the benchmark on positions.

    python benchmarks/keyworld.py

trains the base at 256 tokens and writes it to fixtures/keyworld (some minutes of one core). A
document repeats phrases of 12 symbols from a dictionary of its own, and holds keys: 6 symbols that nothing else has,
planted once and asked once. Who sees the first symbol of a key again can tell the other five, and only from where it
was planted.
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
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.train.pretrain.induction import lay_down_induction

BASE = Path(__file__).parent / "fixtures" / "keyworld" / "model.safetensors"
SYMBOLS, PHRASE, KEY = 1024, 12, 6
DICTIONARY = (8, 24)
BASE_TOKENS = 256


@dataclass(frozen=True)
class Document:
    """Attributes:
    ids: [T] symbols.
    asked: [K] where each key begins for the second time.
    """

    ids: Tensor
    asked: Tensor


def document(tokens: int, keys: int, generator: torch.Generator, *, at_end: bool = False) -> Document:
    """A document with `keys` keys, each planted anywhere and asked anywhere later, or, `at_end`, after all else."""
    symbols = torch.randperm(SYMBOLS, generator=generator)
    planted, others = symbols[: keys * KEY].view(keys, KEY), symbols[keys * KEY :]
    size = int(torch.randint(DICTIONARY[0], DICTIONARY[1] + 1, (1,), generator=generator))
    phrases = others[torch.randint(len(others), (size, PHRASE), generator=generator)]
    room = tokens - 2 * keys * KEY
    order = torch.randint(size, (room // PHRASE + 2,), generator=generator)
    start = int(torch.randint(PHRASE, (1,), generator=generator))
    filler = phrases[order].flatten()[start : start + room]
    places = torch.randint(room + 1, (keys, 2), generator=generator)
    places = torch.stack([places[:, 0], torch.full((keys,), room)], 1) if at_end else places.sort(dim=1).values
    plan = sorted((int(places[key, turn]), turn, key) for key in range(keys) for turn in (0, 1))
    parts, asked, last, filled = [], [0] * keys, 0, 0
    for place, _, key in plan:
        parts += [filler[last:place], planted[key]]
        filled += place - last
        asked[key] = filled
        filled, last = filled + KEY, place
    return Document(torch.cat([*parts, filler[last:]]), torch.tensor(asked))


def drawn(seed: int, number: int) -> torch.Generator:
    """A generator for the documents of one step or one test, the same whoever asks."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def batch(count: int, tokens: int, generator: torch.Generator, most_keys: int) -> Tensor:
    """[B, T] documents to learn from."""
    keys = torch.randint(1, most_keys + 1, (count,), generator=generator).tolist()
    return torch.stack([document(tokens, k, generator).ids for k in keys])


def new_model(seed: int = 0) -> LlamaForCausalLM:
    """0.5 M parameters in two layers, which can already copy (app/train/pretrain/induction.py)."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SYMBOLS,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=BASE_TOKENS,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    lay_down_induction(model, torch.Generator().manual_seed(seed))
    return model


def base_model(path: Path = BASE) -> LlamaForCausalLM:
    """The base as it was kept, in float32."""
    model = new_model()
    model.load_state_dict({name: x.float() for name, x in load_file(path).items()}, strict=False)
    model.tie_weights()
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """One word for each symbol; the engine wants a tokenizer."""
    words = Tokenizer(models.WordLevel(vocab={f"s{i}": i for i in range(SYMBOLS)}))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def fit(model: LlamaForCausalLM, loss_at, steps: int, rate: float, warmup: int = 20) -> list[float]:
    """AdamW with a linear rise and a linear fall to a twentieth; `loss_at(step)` gives the loss of a step.

    Returns:
        The losses.
    """
    adam = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    losses, started = [], time.monotonic()
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = rate * min((step + 1) / warmup, 1 - 0.95 * max(0, step - warmup) / max(1, steps - warmup))
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            print(
                f"step {step}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
            )
    return losses


def next_nats(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """[B, T - 1] nats of every token but the first."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")


def train_base(steps: int, seed: int = 0) -> LlamaForCausalLM:
    """Train at lengths of at most 256 tokens, 4,096 tokens a step."""
    model = new_model(seed).train()

    def loss_at(step: int) -> Tensor:
        generator = drawn(seed, step)
        tokens = (128, 192, BASE_TOKENS)[int(torch.randint(3, (1,), generator=generator))]
        return next_nats(model, batch(4096 // tokens, tokens, generator, most_keys=tokens // 32)).mean()

    fit(model, loss_at, steps, rate=2e-3)
    return model.eval()


def main(argv: list[str] | None = None) -> int:
    """Train the base and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path, default=BASE)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = train_base(args.steps)
    weights = {name: x.detach().bfloat16() for name, x in model.state_dict().items() if name != "lm_head.weight"}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    new = args.output.with_suffix(".new")
    save_file(weights, new)
    new.replace(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
