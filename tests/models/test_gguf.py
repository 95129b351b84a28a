"""GGUF files as checkpoints: the same model, the same ids as llama.cpp, or a refusal by name."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from app.errors import ModelError
from app.models import folder as folders
from app.models.gguf import QUANTIZATIONS, describe, open_gguf
from app.models.gguf_header import parts_of
from app.models.inspect import inspect
from app.models.merging import load_stock
from app.runtime.load import load_engine
from app.settings import Settings
from app.train.tune.output import read_base
from tests.models import gguf_maker

IDS = torch.tensor([[5, 9, 77, 200, 3, 4, 8, 260, 299, 17]])
ODD = (
    "x =  12\n  34\t\t5",
    "a\n\n\n\nb\n\n \n  c",
    "|  1 |   22 |\t333|\n|---|\n| 4.5e-10 |  007  |\n",
    "def f( x ):\n\t\tif  x:\n\t\t\treturn   1\n    # four\n        eight  \n",
    "It's 12,345.678; I'LL say we've 007 o'clocks, they're 99% sure. ½ ² ٣",
    "Grüße, naïve café, Привет мир, 你好世界, 😀👍🏽",
    "   three spaces,\ttab\n\n  \n and trailing   ",
    "the sea <|im_end|> and </s> the light",
    "",
)


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize(
    "arch, changes",
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_the_model_is_the_one_that_was_written(tmp_path, arch, changes):
    made = gguf_maker.model(arch, **changes)
    path = gguf_maker.write(tmp_path / "Tiny-1B.gguf", made)
    folder = describe(path, tmp_path / "room")
    assert folder.name == "Tiny-1B" and not list(folder.glob("*.safetensors"))
    torch.testing.assert_close(logits(load_stock(folder, torch.float32)), logits(made))
    assert describe(path, tmp_path / "room") == folder  # nothing is made twice


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_every_quantization_is_read_as_the_package_gguf_reads_it(tmp_path, kind):
    made = gguf_maker.model(hidden=256)
    path = gguf_maker.write(tmp_path / "q.gguf", made, kind=kind)
    weights = dict(open_gguf(path).weights())
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for ours, place in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        tensor = reader[f"blk.1.{place}.weight"]
        assert tensor.tensor_type.name == kind
        found = weights[f"model.layers.1.{ours}.weight"]
        np.testing.assert_array_equal(found, gguf.dequantize(tensor.data, tensor.tensor_type).reshape(found.shape))
    assert np.isfinite(weights["model.embed_tokens.weight"]).all()
    assert kind in inspect(path).facts["dtype"]


def test_split_files_are_one_model(tmp_path):
    made = gguf_maker.model()
    whole = gguf_maker.write(tmp_path / "whole.gguf", made)
    first = gguf_maker.write(tmp_path / "split.gguf", made, parts=3)
    parts = parts_of(first)
    assert len(parts) == 3 and parts_of(parts[2]) == parts
    for name, values in open_gguf(whole).weights():
        np.testing.assert_array_equal(dict(open_gguf(parts[1]).weights())[name], values)
    parts[1].unlink()
    with pytest.raises(ModelError, match="one of 3 parts, and split-00002-of-00003.gguf is missing"):
        open_gguf(first)
    assert not inspect(first).usable


@pytest.mark.parametrize(
    "options, message",
    [
        ({"arch": "gemma3"}, "architecture 'gemma3' is not supported"),
        ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "rope scaling 'longrope' is not supported"),
        ({"without": ("blk.1.ffn_up.weight",)}, "layers.1.mlp.up_proj.weight .* is missing"),
        ({"without": ("token_embd.weight",)}, "token_embd.weight is missing"),
        ({"kind": "TQ1_0"}, "quantization TQ1_0 is not supported"),
        ({"rope_factors": np.full(4, 3.0)}, "its rope factors are not those of Llama 3"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path, options, message):
    hidden = 256 if options.get("kind") else 32
    path = gguf_maker.write(tmp_path / "bad.gguf", gguf_maker.model(hidden=hidden), **options)
    with pytest.raises(ModelError, match=message):
        describe(path, tmp_path / "room")
    assert not [entry for entry in tmp_path.rglob("*") if entry.suffix == ".json"]


def test_unknown_splits_and_tokenizers_are_refused_by_name(tmp_path):
    words = gguf_maker.byte_pairs("smollm")
    path = gguf_maker.write(tmp_path / "rule.gguf", gguf_maker.model(), {**words, "pre": "new-rule"})
    with pytest.raises(ModelError, match="by the rule 'new-rule'"):
        describe(path, tmp_path / "room")
    path = gguf_maker.write(tmp_path / "t5.gguf", gguf_maker.model(), {**words, "model": "t5"})
    with pytest.raises(ModelError, match="tokenizer 't5' is not supported"):
        describe(path, tmp_path / "room")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_file_cut_short_is_told(tmp_path, share):
    path = gguf_maker.write(tmp_path / "cut.gguf", gguf_maker.model())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) + 4])
    with pytest.raises(ModelError, match="cut short"):
        folders.find_folder(str(path), download=False, room=tmp_path)
    assert not inspect(path).usable


def test_a_file_of_another_kind_is_no_gguf(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_text("hello")
    with pytest.raises(ModelError, match="is no GGUF file"):
        folders.find_folder(str(path), download=False, room=tmp_path)


def test_rope_scaling_comes_from_the_metadata(tmp_path):
    scaling = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    scaling["llama.rope.scaling.original_context_length"] = 32
    path = gguf_maker.write(tmp_path / "yarn.gguf", gguf_maker.model(), metadata=scaling)
    rope = open_gguf(path).config["rope_parameters"]
    assert rope == {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    path = gguf_maker.write(tmp_path / "linear.gguf", gguf_maker.model(), metadata=scaling)
    assert open_gguf(path).config["rope_parameters"]["factor"] == 2.0


def test_llama_3s_scaling_is_found_in_its_factors(tmp_path):
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    made = gguf_maker.model(hidden=128, rope_parameters=rope)
    plain = 500000.0 ** -(np.arange(0, 32, 2) / 32)
    factors = plain / made.model.rotary_emb.inv_freq.numpy()
    assert factors.max() == pytest.approx(8) and factors.min() == pytest.approx(1)
    path = gguf_maker.write(tmp_path / "l3.gguf", made, rope_factors=factors)
    assert open_gguf(path).config["rope_parameters"] == rope
    torch.testing.assert_close(logits(load_stock(describe(path, tmp_path), torch.float32)), logits(made))


@pytest.mark.parametrize("rule", ["smollm", "qwen2", "llama-bpe", "gpt-2", "tekken", "sentencepiece"])
def test_ids_are_those_of_llama_cpp(tmp_path, rule):
    pytest.importorskip("xllamacpp")
    from scripts.llama_cpp import LlamaCpp

    words = gguf_maker.sentence_pieces() if rule == "sentencepiece" else gguf_maker.byte_pairs(rule)
    path = gguf_maker.write(tmp_path / "words.gguf", gguf_maker.model(), words)
    ours, theirs = Tokenizer.from_file(str(describe(path, tmp_path) / "tokenizer.json")), LlamaCpp(path)
    for text in (*ODD, *gguf_maker.TEXTS[:4], Path(__file__).read_text(encoding="utf-8")):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


def test_a_tuning_run_starts_from_a_gguf_file(tmp_path):
    path = gguf_maker.write(tmp_path / "Tiny.gguf", gguf_maker.model())
    base = read_base(str(path))
    assert base.trained_tokens == 1024 and base.fingerprint() == folders.fingerprint([path], {})
    loaded = base.load(torch.float32)
    assert loaded.name_or_path == str(path)  # what its adapter will name
    torch.testing.assert_close(logits(loaded), logits(gguf_maker.model()))


def test_a_gguf_file_answers(tmp_path):
    """--model FILE.gguf: its fingerprint is the file's, and what it may not be is told before weights are read."""
    path = gguf_maker.write(tmp_path / "Tiny.gguf", gguf_maker.model())
    settings = Settings(home=tmp_path / "home", model=str(path), budget_tokens=None)
    known: dict[str, str] = {}
    engine = load_engine(settings, known)
    assert engine.name == "Tiny" and engine.trained_tokens == 1024
    assert engine.system_prompt == "Answer the question from the text."
    assert [key.split(" ")[0] for key in known][:1] == [str(path)]
    document = engine.read([engine.bos_id, *engine.text_tokenizer.encode("the sea").ids])
    assert document.tokens == 1 + len(engine.text_tokenizer.encode("the sea").ids)
