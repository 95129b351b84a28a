"""Merging equals peft's, whatever was trained, also where weights are tied; old LongLoRA layouts."""

from dataclasses import fields

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from app.errors import ModelError
from app.models.adapter import ACCEPTED, REFUSED, read_adapter
from app.models.merging import AdapterWeights, merge_into
from tests import tiny
from tests.checkpoints import SIZES, adapter, longlora, rewrite, save

TEXT = torch.tensor([tiny.token_ids(60)])
ROWS = torch.tensor([[1, 3, 5, 7, 200]])  # tokens whose rows are trained
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
    "lora on tied embeddings": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "lora on a tied head": {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
    "lora on both embeddings": {"target_modules": ["embed_tokens", "lm_head"]},
    "token rows of the head": {"trainable_token_indices": {"lm_head": [3, 5]}},
    "token rows of both": {"trainable_token_indices": {"lm_head": [3, 5], "embed_tokens": [7, 5]}},
    "start gaussian": {"init_lora_weights": "gaussian"},
    "start orthogonal": {"init_lora_weights": "orthogonal"},
    "start mica": {"init_lora_weights": "mica"},
    "start random": {"init_lora_weights": False},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "left out": {"target_modules": "all-linear", "exclude_modules": ["k_proj"], "lora_dropout": 0.1},
    "by expression": {"target_modules": r".*self_attn\.(q|v)_proj"},
    "dora and rslora": {"use_dora": True, "use_rslora": True},
}  # fmt: skip
BIASED = ({"bias": "all"}, {"bias": "lora_only"})
REFUSALS = {
    "alora_invocation_tokens": [5, 6], "arrow_config": {"top_k": 2}, "kasa_config": {"beta": 1e-4},
    "layer_replication": [[0, 2]], "lora_bias": True, "megatron_config": {"a": 1}, "monteclora_config": {"a": 1},
    "target_parameters": ["q_proj.weight"], "use_bdlora": {"nblocks": 2}, "use_qalora": True,
    "velora_config": {"scale": 1.0}, "some_option_of_next_year": 3,
}  # fmt: skip


def bases(folder):
    configs = {
        "llama": LlamaConfig(**SIZES),
        "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
        "qwen2": Qwen2Config(**{name: value for name, value in SIZES.items() if name != "head_dim"}),
    }
    return {name: save(folder / name, config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return bases(tmp_path_factory.mktemp("bases"))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model):
    with torch.inference_mode():
        return torch.cat([model.eval()(text).logits[0] for text in (TEXT, ROWS)])


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


@pytest.mark.parametrize("trained", BIASED)
def test_trained_biases_are_merged(saved, tmp_path, trained):
    path = adapter(tmp_path / "adapter", saved["qwen2"], **trained)
    expected = logits(peft.PeftModel.from_pretrained(load(saved["qwen2"]), path))
    model = load(saved["qwen2"])
    merge_into(model, read_adapter(path), torch.float32)
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-5)


def test_every_option_of_peft_is_decided():
    assert {field.name for field in fields(peft.LoraConfig)} <= ACCEPTED | set(REFUSED)
    assert not ACCEPTED & set(REFUSED)
    peft.LoraConfig().to_dict()
    assert all(name in REFUSALS for name in REFUSED)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "something new"])
def test_an_adapter_that_starts_from_a_part_of_the_base_is_refused(saved, tmp_path, start):
    path = adapter(tmp_path / "adapter", saved["llama"])
    rewrite(path / "adapter_config.json", init_lora_weights=start)
    with pytest.raises(ModelError, match=rf"init_lora_weights = '{start}': .*(save it in peft|merge it with peft)"):
        read_adapter(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_peft_converts_to_a_plain_adapter_is_merged(saved, tmp_path, start):
    """The way out that the refusal names."""
    torch.manual_seed(1)
    model = peft.get_peft_model(
        load(saved["llama"]), peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=start)
    )
    model.save_pretrained(tmp_path / "start")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    expected = logits(model)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start")
    merged = load(saved["llama"])
    merge_into(merged, read_adapter(tmp_path / "plain"), torch.float32)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("option", REFUSALS)
def test_options_that_cannot_be_merged_are_refused_by_name(saved, tmp_path, option):
    path = adapter(tmp_path / "adapter", saved["llama"])
    rewrite(path / "adapter_config.json", **{option: REFUSALS[option]})
    with pytest.raises(ModelError, match=f"{option} = .*: .*(peft|choose another adapter)"):
        read_adapter(path)


def test_fan_in_fan_out_means_nothing_for_linear_layers(saved, tmp_path):
    path = adapter(tmp_path / "adapter", saved["llama"])
    model = load(saved["llama"])
    merge_into(model, read_adapter(path), torch.float32)
    rewrite(path / "adapter_config.json", fan_in_fan_out=True)
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        expected = logits(peft.PeftModel.from_pretrained(load(saved["llama"]), path))
    read_adapter(path)
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_dora_on_embeddings_is_refused(saved, tmp_path):
    path = adapter(tmp_path / "adapter", saved["llama"], target_modules=["q_proj", "embed_tokens"], use_dora=True)
    with pytest.raises(ModelError, match="use_dora on embeddings"):
        read_adapter(path)
