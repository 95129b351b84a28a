"""`train RECIPE --data DATA`: from raw texts to a checkpoint folder, resumable at every stage."""

import argparse
import json
import logging
import random
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from app.errors import ConfigError, InputError

TOKENIZER_CHARS = 100_000  # of each book


def _table(kind: type, values: dict[str, Any], where: str) -> Any:
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known are {[f.name for f in fields(kind)]}")
    return kind(**values)


def read_recipe(path: Path):
    """Read a recipe file.

    Returns:
        (PretrainConfig, AttentionConfig).

    Raises:
        ConfigError: the file is missing, not TOML, or has unknown keys.
    """
    from app.runtime.config import AttentionConfig
    from app.train.trainer import PretrainConfig, Stage

    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from error
    table = dict(recipe.get("pretrain", {}))
    stages = tuple(_table(Stage, stage, f"{path} [[pretrain.stages]]") for stage in table.pop("stages", ()))
    if not stages:
        raise ConfigError(f"{path}: no [[pretrain.stages]]; give at least one with tokens, batch and steps")
    if "start" in table:
        table["start"] = str(path.parent / table["start"])
    config = _table(PretrainConfig, {**table, "stages": stages}, f"{path} [pretrain]")
    attention = _table(AttentionConfig, dict(recipe.get("attention", {})), f"{path} [attention]")
    if attention.budget_tokens > config.trained_tokens:
        raise ConfigError(
            f"{path}: [attention] budget_tokens = {attention.budget_tokens} is beyond the longest stage, "
            f"{config.trained_tokens} tokens; make it smaller or train longer texts"
        )
    return config, attention


def _tokenizer(folder: Path, data: Path):
    from transformers import AutoTokenizer

    from app.train import corpus
    from app.train.tokenizer import save_tokenizer, train_tokenizer

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


def export(model, tokenizer, config, attention, folder: Path) -> None:
    """Write a plain checkpoint in bfloat16, and `lectern.json` beside it."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    before = json.loads((Path(config.start) / "lectern.json").read_text())["training"] if config.start else {}
    tokens = sum(stage.tokens * stage.batch * stage.steps for stage in config.stages) + before.get("tokens", 0)
    recipe = {
        "format": 1,
        "demonstration": True,
        "trained_tokens": config.trained_tokens,
        "attention": asdict(attention),
        "rope": {"type": "default", "theta": model.config.rope_parameters["rope_theta"]},
        "training": {"steps": config.steps + before.get("steps", 0), "tokens": tokens},
    }
    (folder / "lectern.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    """Run the stages of a recipe; what is finished is not done again."""
    parser = argparse.ArgumentParser(prog="launch.py train", description=__doc__)
    parser.add_argument("recipe", type=Path, help="TOML file; the checkpoint is written into its folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with books/, qa/ and code/")
    parser.add_argument("--run", type=Path, help="checkpoints and caches (default: runs/ of the recipe's folder name)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is fastest on shared cores")
    args = parser.parse_args(argv)
    if not (args.data / "books" / "index.tsv").exists():
        raise InputError(f"{args.data}: no books/index.tsv there; give the data folder with --data")
    config, attention = read_recipe(args.recipe)
    if config.start and not (Path(config.start) / "lectern.json").exists():
        raise ConfigError(f"{args.recipe} [pretrain] start = {config.start}: no checkpoint of ours; train it first")

    import torch

    from app.train import corpus
    from app.train.data import BookTokens, SampleMaker
    from app.train.trainer import pretrain

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(args.threads)
    folder = args.recipe.parent
    run = args.run or Path("runs") / folder.name
    tokenizer = _tokenizer(folder, args.data)
    books = BookTokens(args.data, "train", tokenizer, run / "cache")
    talking = any("talk" in shares for shares in (config.shares, *(stage.shares for stage in config.stages)))
    talks = list(corpus.instructions(args.data)) if talking else []
    maker = SampleMaker(books, list(corpus.passages(args.data)), tokenizer, talks)
    model = pretrain(config, maker, tokenizer, run)
    export(model, tokenizer, config, attention, folder)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
