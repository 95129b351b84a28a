"""How far a model's positions are stretched, and by which method. Needs no torch.

Linear interpolation, NTK, and CRD NTK of MS-Attn: cyclic, randomly truncated, dynamically growing. In training CRD NTK
scales positions into the learned range by a larger rotary base, rolls the table of positions by a random shift, cuts
the length at random, and lets the base grow in stages (app/train/tune/positions.py). Nothing of it remains at inference
but one base, so a tuned checkpoint stays plain.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.errors import ConfigError

METHODS = ("none", "linear", "ntk", "crd")
SEAMS = ("wrap", "mask")
MOST_POSITIONS = 32_768  # no token sits further out at inference; float32 angles and the tuned range end there
DEFAULT_THETA = 10_000.0
ENTRY_KEYS = {"type", "theta", "method", "factor", "factors", "pretrained_tokens", "p_cyclic", "p_truncated", "seam"}


@dataclass(frozen=True)
class PositionConfig:
    """How positions are stretched in training and at inference: a recipe's [positions] table.

    Attributes:
        factors: s of each stage, after equal shares of the steps; `linear` and `ntk` take one.
        pretrained_tokens: the range that the base knows; 0 means its max_position_embeddings (see `of_base`).
        p_cyclic: share of the steps in which `crd` rolls its table.
        p_truncated: share of the steps in which `crd` cuts the training length.
        seam: where the rolled table begins again, `wrap` lets later tokens look across; `mask` does not.
    """

    method: str = "none"
    factors: tuple[float, ...] = ()
    pretrained_tokens: int = 0
    p_cyclic: float = 0.5
    p_truncated: float = 0.25
    seam: str = "wrap"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"positions method = {self.method!r}: not known; choose one of {', '.join(METHODS)}")
        if self.seam not in SEAMS:
            raise ConfigError(f"positions seam = {self.seam!r}: not known; choose one of {', '.join(SEAMS)}")
        given = [self.factors] if isinstance(self.factors, int | float) else self.factors
        if not isinstance(given, list | tuple) or not all(_is_number(s) and s >= 1 for s in given):
            raise ConfigError(f"positions factors = {self.factors!r}: must be numbers of at least 1, such as [4, 8]")
        object.__setattr__(self, "factors", tuple(given))
        if any(b < a for a, b in zip(self.factors, self.factors[1:], strict=False)):
            raise ConfigError(f"positions factors = {list(self.factors)}: must not become smaller from stage to stage")
        count = len(self.factors)
        if (self.method == "none") != (count == 0) or (self.method != "crd" and count > 1):
            wanted = {"none": "takes no factors", "crd": "needs at least one factor, such as [4, 8]"}
            raise ConfigError(
                f"positions factors = {list(self.factors)}: method {self.method} "
                f"{wanted.get(self.method, 'takes one factor, such as [4]')}"
            )
        if type(self.pretrained_tokens) is not int or self.pretrained_tokens < 0:
            raise ConfigError(f"positions pretrained_tokens = {self.pretrained_tokens!r}: must be a whole number")
        for name in ("p_cyclic", "p_truncated"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise ConfigError(f"positions {name} = {value!r}: must lie between 0 and 1")

    def of_base(self, max_position_embeddings: int) -> "PositionConfig":
        """The same with `pretrained_tokens` filled in from the base's config."""
        return self if self.pretrained_tokens else replace(self, pretrained_tokens=max_position_embeddings)

    def factor_at(self, step: int, steps: int) -> float:
        """s of a step: stages are equal shares of all steps."""
        count = len(self.factors)
        return self.factors[min(count - 1, step * count // max(1, steps))] if count else 1.0

    @property
    def inference_factor(self) -> float:
        """The one s that a tuned checkpoint is read with: the last stage's, which its weights saw last."""
        return self.factors[-1] if self.factors else 1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def ntk_base(base: float, factor: float, head_dim: int) -> float:
    """The rotary base that stretches the slowest pair by `factor` and leaves the fastest alone."""
    return base * factor ** (head_dim / (head_dim - 2))


def rope_parameters(config: PositionConfig, base: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """What config.json says of positions at inference, so that stock transformers has the right frequencies.

    Args:
        base: `rope_parameters` of the base's config.

    Raises:
        ConfigError: the base stretches its positions already.
    """
    return stretched(config, base, head_dim, config.inference_factor)


def stretched(config: PositionConfig, base: Mapping[str, Any], head_dim: int, factor: float) -> dict[str, Any]:
    """`rope_parameters` of one factor; arguments and errors as `rope_parameters`."""
    if config.method == "none":
        return dict(base)
    kind = base.get("rope_type", "default")
    if kind != "default":
        raise ConfigError(
            f"positions method = {config.method}: the base stretches its positions already ({kind}); take method none"
        )
    theta = base.get("rope_theta", DEFAULT_THETA)
    if config.method == "linear":
        return {**base, "rope_type": "linear", "rope_theta": theta, "factor": float(factor)}
    return {**base, "rope_type": "default", "rope_theta": ntk_base(theta, factor, head_dim)}


# --- the record of it: the `rope` entry of lectern.json


def rope_entry(config: PositionConfig, base: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """The `rope` entry of lectern.json for an adapter or a merged checkpoint; arguments as `rope_parameters`."""
    rope = rope_parameters(config, base, head_dim)
    entry = {"type": rope.get("rope_type", "default"), "theta": rope.get("rope_theta", DEFAULT_THETA)}
    if config.method == "none":
        return {**entry, "method": "none"}
    made = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    return {**entry, "factor": float(config.inference_factor), **made}


def stated_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as a config.json of any age states them."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = stated.get("rope_type", stated.get("type", "default"))
    theta = stated.get("rope_theta", config.get("rope_theta") or DEFAULT_THETA)
    return {**{k: v for k, v in stated.items() if k != "type"}, "rope_type": kind, "rope_theta": theta}


def applied(entry: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of a base's config.json with an adapter's `rope` entry put in."""
    stated = stated_rope(config)
    rope = {**stated, "rope_type": entry.get("type", stated["rope_type"])}
    rope["rope_theta"] = entry.get("theta", stated["rope_theta"])
    if rope["rope_type"] == "linear":
        rope["factor"] = entry.get("factor", stated.get("factor"))
    return rope


def refusal(entry: Any, config: Mapping[str, Any] | None = None) -> str | None:
    """Why a `rope` entry cannot be used, or None.

    Args:
        config: config.json beside it, which must say the same; None for an adapter, whose entry changes its base.
    """
    if not isinstance(entry, dict):
        return "rope is not a table"
    unknown = sorted(set(entry) - ENTRY_KEYS)
    if unknown:
        return f"rope.{unknown[0]} is not known to this version"
    theta, factor = entry.get("theta", DEFAULT_THETA), entry.get("factor", 1.0)
    for name, value in (("theta", theta), ("factor", factor)):
        if not _is_number(value) or value <= 0:
            return f"rope.{name} = {value!r} is no positive number"
    try:
        PositionConfig(**{k: v for k, v in entry.items() if k in PositionConfig.__dataclass_fields__})
    except ConfigError as error:
        return f"rope: {error}"
    if config is None:
        return None
    stated = stated_rope(config)
    pairs = [("type", "rope_type")] + [("theta", "rope_theta")]
    if entry.get("type") == "linear":
        pairs.append(("factor", "factor"))
    for ours, theirs in pairs:
        if ours in entry and not _same(entry[ours], stated.get(theirs)):
            return f"rope.{ours} = {entry[ours]!r}, but config.json says {theirs} = {stated.get(theirs)!r}"
    return None


def _same(a: Any, b: Any) -> bool:
    return abs(a - b) <= 1e-6 * abs(a) if _is_number(a) and _is_number(b) else a == b


def range_tokens(entry: Mapping[str, Any]) -> int | None:
    """Positions that the inference factor of an entry covers; None where positions are not stretched."""
    if entry.get("method", "none") == "none" or not entry.get("pretrained_tokens"):
        return None
    return int(entry.get("factor", 1.0) * entry["pretrained_tokens"])
