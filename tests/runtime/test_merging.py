"""Merging equals peft's, whatever was trained, also where weights are tied; old LongLoRA layouts."""

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from app.errors import ModelError
from app.runtime.adapter import read_adapter
from app.runtime.merging import AdapterWeights, merge_into
from tests import tiny
from tests.checkpoints import SIZES, adapter, longlora, save

TEXT = torch.tensor([tiny.token_ids(60)])
NORMS = ["input_layernorm", "post_attention_layernorm", "model.norm"]
TRAINED = {
    "lora": {},
    "rslora and patterns": {
        "use_rslora": True, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 32},
    },
    "dora": {"use_dora": True},
    "every norm": {"modules_to_save": ["norm"]},
    "embeddings and norms": {"modules_to_save": ["embed_tokens", *NORMS]},
    "embeddings, tied": {"modules_to_save": ["embed_tokens", *NORMS], "ensure_weight_tying": True},
    "both embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "token rows": {"trainable_token_indices": {"embed_tokens": [3, 5, 200]}},
    "lora on embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
}  # fmt: skip


def bases(folder):
    configs = {
        "llama": LlamaConfig(**SIZES),
        "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    }
    return {name: save(folder / name, config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return bases(tmp_path_factory.mktemp("bases"))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model):
    with torch.inference_mode():
        return model.eval()(TEXT).logits[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "trained"),
    [*((name, trained) for name in ("llama", "tied") for trained in TRAINED),
     ("qwen3", "every norm"), ("qwen3", "embeddings, tied")],
)  # fmt: skip
def test_merging_is_the_model_that_was_trained(saved, tmp_path, name, trained):
    path = adapter(tmp_path / "adapter", saved[name], **TRAINED[trained])
    expected = logits(peft.PeftModel.from_pretrained(load(saved[name]), path))
    model = load(saved[name])
    assert (logits(model) - expected).abs().max() > 0.05
    merge_into(model, read_adapter(path), torch.float32)
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("trained", "tied"), [("embeddings, tied", True), ("token rows", True), ("embeddings and norms", False)]
)
def test_tied_weights_stay_tied_where_they_were_trained_so(saved, tmp_path, trained, tied):
    """peft leaves the base's rows in the head where it is not told to keep the tie; so was the model trained."""
    path = adapter(tmp_path / "adapter", saved["tied"], **TRAINED[trained])
    model = load(saved["tied"])
    merge_into(model, read_adapter(path), torch.bfloat16)
    assert model.config.tie_word_embeddings is tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_longloras_two_files_are_one_adapter(saved, tmp_path):
    path = adapter(tmp_path / "adapter", saved["llama"], modules_to_save=["embed_tokens", *NORMS])
    expected = logits(peft.PeftModel.from_pretrained(load(saved["llama"]), path))
    model = load(saved["llama"])
    merge_into(model, read_adapter(longlora(tmp_path / "old", path)), torch.float32)
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-5)


def test_longloras_embeddings_are_the_tied_ones(saved, tmp_path):
    """Its scripts train the embeddings themselves, not a copy."""
    path = adapter(tmp_path / "adapter", saved["tied"], modules_to_save=["embed_tokens"])
    weights = AdapterWeights(read_adapter(longlora(tmp_path / "old", path)))
    assert not weights.unties and AdapterWeights(read_adapter(path)).unties


def test_the_head_grows_by_its_mean(saved, tmp_path):
    path = longlora(tmp_path / "old", adapter(tmp_path / "a", saved["llama"], modules_to_save=["embed_tokens"]))
    extra = {"module.base_model.model.model.embed_tokens.weight": torch.ones(263, 32)}
    torch.save(extra, path / "trainable_params.bin")
    weights = AdapterWeights(read_adapter(path))
    head = torch.randn(262, 32)
    grown = weights.merged("lm_head.weight", head)
    assert grown.shape == (263, 32) and torch.equal(grown[:262], head)
    torch.testing.assert_close(grown[262], head.mean(0))
    assert torch.equal(weights.merged("model.embed_tokens.weight", head), torch.ones(263, 32))


def test_values_that_are_not_numbers_are_refused(saved, tmp_path):
    path = adapter(tmp_path / "adapter", saved["llama"])
    weights = load_file(path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"
    weights[name][0, 0] = float("nan")
    save_file(weights, path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"merged, model.layers.1.self_attn.k_proj.weight holds values that are not"):
        merge_into(load(saved["llama"]), read_adapter(path), torch.float32)


def test_an_unchanged_weight_is_handed_through(saved, tmp_path):
    weights = AdapterWeights(read_adapter(adapter(tmp_path / "adapter", saved["llama"])))
    weight = torch.zeros(4, 4, dtype=torch.float16)
    assert weights.merged("model.layers.0.mlp.up_proj.weight", weight) is weight
