"""Options of peft's LoraConfig: what each means for the weights of an adapter, and which cannot be merged here.

Every option of peft 0.21 has a line. The adapter's tensors say which modules have LoRA and of which rank, so options
that only say where or how to train ask for nothing.
"""

from collections.abc import Mapping
from typing import Any

# Of any value: they say where LoRA stands or how it was trained, or merging does what they say.
ACCEPTED = frozenset({
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout", "bias", "modules_to_save",
    "trainable_token_indices", "ensure_weight_tying", "runtime_config", "megatron_core", "qalora_group_size",
    "fan_in_fan_out",  # peft turns it off for linear layers, and all of ours are
    "init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config",  # see STARTS
})  # fmt: skip

# Values of init_lora_weights that leave the base as it is. The others take a part out of it and train that.
STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
OF_THE_BASE = (
    "starts from a part taken out of the base, which this folder does not hold; save it in peft with "
    "path_initial_model_for_weight_conversion, which makes a plain adapter of it"
)
OF_QUANTISED = "was trained on a quantised base; merge it with peft into that base and load the result"
MERGE_WITH_PEFT = "merge it with peft and load the result"

REFUSED = {
    "alora_invocation_tokens": "applies from certain tokens on, so no checkpoint equals it; choose another adapter",
    "arrow_config": "chooses an adapter for each token, so no checkpoint equals it; choose another adapter",
    "kasa_config": f"has singular values beside A and B; {MERGE_WITH_PEFT}",
    "layer_replication": f"has layers twice that the base has once; {MERGE_WITH_PEFT}",
    "lora_bias": f"adds biases that the base's layers do not have; {MERGE_WITH_PEFT}",
    "megatron_config": f"splits layers as Megatron does; {MERGE_WITH_PEFT}",
    "monteclora_config": f"mixes sampled adapters; {MERGE_WITH_PEFT}",
    "target_parameters": f"changes parameters outside linear layers; {MERGE_WITH_PEFT}",
    "use_bdlora": f"has A and B in blocks; {MERGE_WITH_PEFT}",
    "use_qalora": OF_QUANTISED,
    "velora_config": f"keeps compressed activations beside A and B; {MERGE_WITH_PEFT}",
}


def refusal(config: Mapping[str, Any]) -> str:
    """Why an adapter with this adapter_config.json is not loaded: option, value and what to do; "" when it can be."""
    start = config.get("init_lora_weights")
    if start not in STARTS:
        return f"init_lora_weights = {start!r}: {OF_QUANTISED if start == 'loftq' else OF_THE_BASE}"
    for name, value in config.items():
        if name in ACCEPTED or not value:
            continue
        reason = REFUSED.get(name, "is not known to this version of Lectern; update it, or merge the adapter with peft")
        return f"{name} = {_short(value)}: {reason}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
