"""What learns, in which precision, and that tied embeddings stay tied."""

import pytest
import torch
from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from app.errors import ConfigError
from app.train.tune.lora import add_adapter, causal_model, trained_parameters
from app.train.tune.recipe import LoraRecipe
from tests import tiny


def model(tied: bool = True) -> LlamaForCausalLM:
    config = tiny.model().config
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def learning(recipe: LoraRecipe, made=None) -> set[str]:
    names = trained_parameters(add_adapter(made or model(), recipe))
    return {name.removeprefix("base_model.model.").replace(".default", "") for name in names}


def test_reduced_adapters_have_two_projections_of_each_layer():
    names = learning(LoraRecipe("ko", embeddings=False, norms=False))
    assert names == {
        f"model.layers.{i}.self_attn.{p}_proj.lora_{side}.weight" for i in (0, 1) for p in "ko" for side in "AB"
    }


def test_embeddings_and_norms_learn_whole():
    names = {name for name in learning(LoraRecipe("q")) if "lora" not in name}
    norms = {f"model.layers.{i}.{n}_layernorm" for i in (0, 1) for n in ("input", "post_attention")} | {"model.norm"}
    assert names == {f"{name}.modules_to_save.weight" for name in {*norms, "model.embed_tokens"}}


def test_norms_of_queries_and_keys_are_left_alone():
    config = Qwen3Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    names = learning(LoraRecipe("none"), Qwen3ForCausalLM(config))
    assert len(names) == 6 and not any("q_norm" in name or "k_norm" in name for name in names)


def test_without_targets_the_stand_in_adds_nothing():
    adapted = add_adapter(model(), LoraRecipe("none"))
    assert not any("lora" in name for name in trained_parameters(adapted))
    ids = torch.tensor([tiny.token_ids(20)])
    torch.testing.assert_close(adapted(ids).logits, model()(ids).logits)


@pytest.mark.parametrize("lora", [LoraRecipe("k"), LoraRecipe("k", embeddings=False, token_rows=(7, 9))])
def test_tied_embeddings_stay_tied(lora):
    """What changes an embedding changes the same row of the output embedding."""
    adapted = add_adapter(model(), lora)
    causal = causal_model(adapted)
    ids = torch.tensor([[7, 8, 9]])
    before = causal.lm_head(torch.eye(32)[:4]).detach()
    with torch.no_grad():
        for name, parameter in trained_parameters(adapted).items():
            if "embed_tokens" in name or "token_adapter" in name:
                parameter += 1.0
    moved = causal.get_input_embeddings()(ids)[0] - model().model.embed_tokens(ids)[0]
    head = causal.lm_head(torch.eye(32)[:4]) - before  # [4, V]
    torch.testing.assert_close(moved[:, 0], head[0, ids[0]], atol=1e-5, rtol=1e-5)
    assert moved[0, 0] > 0.9


def test_untied_output_embeddings_do_not_learn():
    adapted = add_adapter(model(tied=False), LoraRecipe("k"))
    assert not causal_model(adapted).lm_head.weight.requires_grad


def test_what_learns_is_float32_and_the_rest_stays():
    adapted = add_adapter(model().to(torch.bfloat16), LoraRecipe("ko"))
    assert {p.dtype for p in trained_parameters(adapted).values()} == {torch.float32}
    assert causal_model(adapted).model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    whole = add_adapter(model().to(torch.bfloat16), LoraRecipe(full=True))
    assert {p.dtype for p in whole.parameters()} == {torch.float32} and all(p.requires_grad for p in whole.parameters())


def test_token_rows_outside_of_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match="token_rows: 262 is not among the 262 tokens"):
        add_adapter(model(), LoraRecipe("k", embeddings=False, token_rows=(3, 262)))
