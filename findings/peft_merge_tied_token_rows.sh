#!/usr/bin/env bash
# peft 0.21.2: merge_and_unload of trained token rows changes a model whose embeddings are tied.
#
# Valid input: a Llama with tie_word_embeddings, and trainable_token_indices for lm_head alone, or for lm_head and
# embed_tokens with different rows. The adapted model keeps the two apart; merging writes both into the one tensor, so
# rows of the input embeddings that were never trained take the head's values (and the other way round). No error; the
# only warning comes when the adapter is made. With untied embeddings the merge is exact.
# Expected: logits after merge_and_unload equal those before, to rounding.
# Exits with 1 when that is so again.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 peft==0.21.2
cat > "$place/run.py" <<'PY'
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
text = torch.tensor([[3, 5, 7, 11, 2]])


def difference(tied: bool, rows: dict[str, list[int]]) -> float:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=tied,
    )
    base = LlamaForCausalLM(config).eval()
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=rows))
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.inference_mode():
        before = model.eval()(text).logits
        after = model.merge_and_unload().eval()(text).logits
    return float((before - after).abs().max())


cases = {"head alone": {"lm_head": [3, 5]}, "both, other rows": {"lm_head": [3, 5], "embed_tokens": [7, 5]}}
found = {(name, tied): difference(tied, rows) for name, rows in cases.items() for tied in (True, False)}
print(f"peft {peft.__version__}, torch {torch.__version__}")
for (name, tied), value in found.items():
    print(f"token rows of {name}, embeddings {'tied' if tied else 'apart'}: logits change by {value:.6f} in the merge")
assert all(value < 1e-4 for (_, tied), value in found.items() if not tied), "the untied merge is not exact any more"
assert all(value > 0.05 for (_, tied), value in found.items() if tied), "merging keeps the tied model now"
PY
"$place/venv/bin/python" "$place/run.py"
