"""The laid-down circuit copies before any training."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.errors import ConfigError
from app.train.pretrain.induction import lay_down_induction


def fresh_model(kv_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def share_copied(model: LlamaForCausalLM) -> float:
    """Share of tokens right in the second half of a repeated run of random tokens."""
    run = torch.randint(1024, (1, 100), generator=torch.Generator().manual_seed(1))
    best = model(torch.cat([run, run], dim=1)).logits[0, 100:-1].argmax(-1)
    return (best == run[0, 1:]).float().mean().item()


@pytest.mark.parametrize(("kv_heads", "least"), [(1, 0.3), (2, 0.6), (4, 0.6)])
def test_a_fresh_model_copies(kv_heads, least):
    model = fresh_model(kv_heads)
    assert share_copied(model) < 0.05
    lay_down_induction(model, torch.Generator().manual_seed(0))
    assert share_copied(model) > least


def test_a_model_too_small_for_it_is_refused():
    config = LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ConfigError, match="induction = false"):
        lay_down_induction(LlamaForCausalLM(config), torch.Generator())
