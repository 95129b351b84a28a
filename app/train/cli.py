"""`train RECIPE`: tune a checkpoint, or make one from raw texts; a run that was stopped goes on where it was."""

import argparse
import json
import logging
import os
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from app.errors import ConfigError, InputError
from app.train.tune.recipe import TuningRecipe, read_toml, read_tuning

log = logging.getLogger(__name__)

TOKENIZER_CHARS = 100_000  # of each book


def _table(kind: type, values: dict[str, Any], where: str) -> Any:
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known are {[f.name for f in fields(kind)]}")
    return kind(**values)


def read_recipe(path: Path):
    """Read a recipe file.

    Returns:
        (PretrainingRecipe, AttentionConfig, DecodeConfig).

    Raises:
        ConfigError: the file is missing, not TOML, or has unknown keys.
    """
    from app.memory.config import AttentionConfig, DecodeConfig
    from app.train.pretrain.trainer import PretrainingRecipe, Stage

    recipe = read_toml(path)
    table = dict(recipe.get("pretrain", {}))
    stages = tuple(_table(Stage, stage, f"{path} [[pretrain.stages]]") for stage in table.pop("stages", ()))
    if not stages:
        raise ConfigError(f"{path}: no [[pretrain.stages]]; give at least one with tokens, batch and steps")
    if "start" in table:
        table["start"] = str(path.parent / table["start"])
    config = _table(PretrainingRecipe, {**table, "stages": stages}, f"{path} [pretrain]")
    attention = _table(AttentionConfig, dict(recipe.get("attention", {})), f"{path} [attention]")
    if attention.budget_tokens > config.trained_tokens:
        raise ConfigError(
            f"{path}: [attention] budget_tokens = {attention.budget_tokens} is beyond the longest stage, "
            f"{config.trained_tokens} tokens; make it smaller or train longer texts"
        )
    return config, attention, _table(DecodeConfig, dict(recipe.get("decode", {})), f"{path} [decode]")


def _tokenizer(folder: Path, data: Path):
    from transformers import AutoTokenizer

    from app.train.pretrain import corpus
    from app.train.pretrain.tokenizer import save_tokenizer, train_tokenizer

    if not (folder / "tokenizer.json").exists():
        rng = random.Random(0)
        texts = []
        for book in corpus.books(data, "train"):
            start = rng.randrange(max(1, len(book.text) - TOKENIZER_CHARS))
            texts.append(book.text[start : start + TOKENIZER_CHARS])
        texts += corpus.code_files(data)
        for passage in corpus.passages(data):
            texts.append(passage.text[:4000])
            texts += [f"{q.question} {q.answer}" for q in passage.questions]
        save_tokenizer(train_tokenizer(texts, vocab_size=8192), folder)
    return AutoTokenizer.from_pretrained(folder)


def export(model, tokenizer, config, attention, decode, folder: Path, steps: int) -> None:
    """Write a plain checkpoint in bfloat16 after so many steps, and `lectern.json` beside it."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    before = json.loads((Path(config.start) / "lectern.json").read_text())["training"] if config.start else {}
    recipe = {
        "format": 1,
        "demonstration": True,
        "trained_tokens": config.trained_tokens,
        "attention": asdict(attention),
        "decode": asdict(decode),
        "rope": {"type": "default", "theta": model.config.rope_parameters["rope_theta"]},
        "training": {
            "steps": steps + before.get("steps", 0),
            "tokens": config.tokens_after(steps) + before.get("tokens", 0),
        },
    }
    (folder / "lectern.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="launch.py train", description=__doc__)
    made.add_argument("recipe", type=Path, help="TOML file with a table [tune] (docs/training.md) or [pretrain]")
    made.add_argument("--run", type=Path, help="checkpoints and caches (runs/ and the recipe's name)")
    made.add_argument("--out", type=Path, help="[tune]: folder for the adapter (the recipe's out, or in the run)")
    made.add_argument("--base", help="[tune]: checkpoint or GGUF file to start from, in place of the recipe's base")
    made.add_argument("--data", type=Path, help="[pretrain]: folder with books/, qa/ and code/")
    made.add_argument("--device", default="auto", help="[tune]: auto, cpu or cuda")
    made.add_argument("--threads", type=int, default=1, help="CPU threads; one is fastest on shared cores")
    return made


def train(argv: Sequence[str]) -> Path:
    """Do what a recipe says; what is finished is not done again.

    Returns:
        The folder of the checkpoint or adapter.

    Raises:
        LecternError: what is wrong with the recipe, its data, its base or the machine.
    """
    args = parser().parse_args(argv)
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main_process else logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    tables = read_toml(args.recipe)
    if "pretrain" in tables and "tune" in tables:
        raise ConfigError(f"{args.recipe}: has both [pretrain] and [tune]; make two recipes of it")
    return _pretrain(args) if "pretrain" in tables else _tune(args)


def main(argv: Sequence[str]) -> int:
    """`train` as a command."""
    train(argv)
    return 0


def _tune(args: argparse.Namespace) -> Path:
    recipe = read_tuning(args.recipe)
    if bool(args.data) != bool(recipe.readings):
        raise ConfigError(
            f"--data {args.data}: belongs to a recipe with [pretrain] or [readings], and those need it; other recipes "
            "name files in their table [data]"
        )
    if args.base:
        recipe = replace(recipe, tune=replace(recipe.tune, base=args.base))
    run = args.run or Path("runs") / args.recipe.stem
    out = args.out or (Path(recipe.tune.out) if recipe.tune.out else run / "adapter")
    from app.train.tune.output import is_finished

    if is_finished(out, recipe):
        log.info("%s is finished already", out)
        return out

    import torch
    from transformers import AutoTokenizer

    from app.train.tune.output import read_base
    from app.train.tune.tuner import tune

    base = read_base(recipe.tune.base)

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    if recipe.readings:
        from app.train.readings.rows import rows_of

        rows, kept_back = rows_of(recipe, tokenizer, args.data, base.told_before), None
    else:
        rows, kept_back = packed_rows(recipe, tokenizer, base.told_before)
        log.info(rows.told())
    in_order = kept_back.in_order if kept_back else None
    tuned = tune(recipe, rows, run, out=out, in_order=in_order, device=args.device)
    if tuned.validation:
        log.info("%.4f nats on %s tokens that were kept back (the base: %s)", tuned.validation.nats,
                 f"{tuned.validation.tokens:,}", tuned.validation.base)  # fmt: skip
    log.info("%d steps, %s tokens; the adapter is in %s", len(tuned.losses), f"{tuned.tokens:,}", out)
    return out


def packed_rows(recipe: TuningRecipe, tokenizer, told_before: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """What a recipe's [data] holds, packed: (to learn from, to validate with or None).

    Args:
        told_before: what chats and documents begin with, see `checkpoint.told_before`.

    Raises:
        ConfigError, InputError: what is wrong with the files.
    """
    from app.train.tune.packing import PackedRows
    from app.train.tune.sources import divide, read_sources, without

    data, kept_back = recipe.data, []
    sources = read_sources(data.files, data.kinds)
    if data.shares:
        sources = [replace(source, share=share) for source, share in zip(sources, data.shares, strict=True)]
    if data.validation_files:
        kept_back = read_sources(data.validation_files)
        sources = without(sources, kept_back)
    elif data.validation:
        sources, kept_back = divide(sources, data.validation)
    shares = [source.share for source in sources] if data.shares else []  # one wholly kept back took its share along
    options = {"tokens": recipe.tune.tokens, "seed": recipe.tune.seed}
    options |= {"prompt_weight": data.prompt_weight, "document_weight": data.document_weight, **(told_before or {})}
    rows = PackedRows(sources, tokenizer, shares=shares, **options)
    return rows, PackedRows(kept_back, tokenizer, **options) if kept_back else None


def sample_maker(data: Path, split: str, tokenizer, cache: Path, tasks: Collection[str] = (), *, quotes: bool = False):
    """What draws samples of `tasks` from the texts of one split; those for training hold no run of words of the others.

    Args:
        quotes: answers of the question sets are quotations.

    Raises:
        InputError: a file that is needed is missing or damaged.
    """
    from app.train.pretrain import corpus
    from app.train.pretrain.data import BookTokens, SampleMaker
    from app.train.pretrain.quoting import quoted

    training = split == "train"
    apart = corpus.held_back(data) if training else None
    archives = corpus.CODE_TO_LEARN if training else corpus.CODE_HELD_BACK
    passages = list(corpus.passages(data, split=split, without=apart))
    if quotes:
        passages = [passage for passage in map(quoted, passages) if passage.questions]
    if not passages:
        raise InputError(f"{data}/qa: no document with questions for the split {split}")
    return SampleMaker(
        BookTokens(data, split, tokenizer, cache, apart),
        passages,
        tokenizer,
        talks=list(corpus.instructions(data)) if "talk" in tasks else (),
        stories=list(corpus.stories(data)) if "story" in tasks else (),
        code=list(corpus.code_files(data, archives)) if "code" in tasks else (),
    )


def _pretrain(args: argparse.Namespace) -> Path:
    if args.data is None or not (args.data / "books" / "index.tsv").exists():
        raise InputError(f"{args.data}: no books/index.tsv there; give the data folder with --data")
    config, attention, decode = read_recipe(args.recipe)
    if config.start and not (Path(config.start) / "lectern.json").exists():
        raise ConfigError(f"{args.recipe} [pretrain] start = {config.start}: no checkpoint of ours; train it first")

    import torch
    from transformers import LlamaForCausalLM

    from app.train.pretrain.probes import Probes
    from app.train.pretrain.trainer import pretrain

    torch.set_num_threads(args.threads)
    folder = args.recipe.parent
    run = args.run or Path("runs") / folder.name
    tokenizer = _tokenizer(folder, args.data)
    tasks = set(config.shares).union(*(stage.shares for stage in config.stages))
    maker = sample_maker(args.data, "train", tokenizer, run / "cache", tasks, quotes=config.quoted)
    held_back = sample_maker(args.data, "valid", tokenizer, run / "cache", quotes=config.quoted)
    probes = Probes(held_back, held_back.passages, config.trained_tokens, config.probe_steps, run / "best")
    pretrain(config, maker, tokenizer, run, [probes])
    model = LlamaForCausalLM.from_pretrained(probes.folder, dtype=torch.float32)
    export(model, tokenizer, config, attention, decode, folder, probes.best_step)
    return folder


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
