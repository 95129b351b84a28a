"""What later tokens attend to, and what a memory keeps for them: one small strategy per policy, chosen by name."""

from dataclasses import asdict, dataclass, field, fields, replace

import torch
from torch import Tensor

from app.errors import ConfigError
from app.kernels.h2o import PRESETS, H2OOptions
from app.kernels.options import SelectionOptions
from app.kernels.rope import rope_table
from app.memory.compaction import Compaction, Eviction, Merging
from app.memory.config import AttentionConfig
from app.memory.index import RegionIndex
from app.memory.shape import MemoryShape
from app.settings import POLICIES, Settings

STRETCHES = 8  # stretches that fill the budget: what a memory that drops tokens reads at once
BOOK_BYTES = 12  # of each slot and KV head: its mass, exposure and origin
INFLLM_TOKENS = 128  # of a block, and of the beginning that is always attended
INFLLM_MERGE = 4  # blocks whose queries choose together
DEFAULT_CAP_MB = 1024


@dataclass(frozen=True)
class Policy:
    """`keep-all`: keeps every region; a query sees the sinks, what is near, and the regions that score best.

    Attributes:
        sees_all: whether a query sees its whole past, whatever the budget.
        local_keys: whether a region is found by the keys that local attention favours (InfLLM).
    """

    name = "keep-all"
    sees_all = False
    local_keys = False

    @property
    def drops(self) -> bool:
        """Whether memories lose tokens for good."""
        return type(self).compaction is not Policy.compaction

    @property
    def scores(self) -> bool:
        """Whether regions are scored, instead of `votes` saying which."""
        return type(self).votes is Policy.votes

    def recipe(self) -> object:
        """What distinguishes memories of this policy from others, for the digest."""
        return [self.name, asdict(self)] if asdict(self) else self.name

    def attention(self, recipe: AttentionConfig) -> AttentionConfig:
        """The attention recipe under this policy."""
        return recipe

    def compaction(self, shape: MemoryShape) -> Compaction | None:
        """How memories of this shape stay small; None when they keep everything."""
        return None

    def votes(self, eligible: Tensor, kv_heads: int) -> Tensor | None:
        """What stands for scores, [G, Hkv, R], of regions eligible to groups [G, R]; None when they are scored."""
        return None


@dataclass(frozen=True)
class Streaming(Policy):
    """`streaming`: keeps every region, sees the sinks and the latest (StreamingLLM)."""

    name = "streaming"

    def votes(self, eligible: Tensor, kv_heads: int) -> Tensor:
        latest = torch.arange(eligible.shape[-1], device=eligible.device).float()
        return latest.masked_fill(~eligible, float("-inf"))[:, None].expand(-1, kv_heads, -1)


@dataclass(frozen=True)
class Full(Policy):
    """`full`: plain attention at original positions, quadratic."""

    name = "full"
    sees_all = True


@dataclass(frozen=True)
class H2O(Policy):
    """`h2o`: each KV head keeps its sinks, its newest tokens and its heavy hitters, as many as the budget."""

    name = "h2o"
    options: H2OOptions = PRESETS["peak"]

    def compaction(self, shape: MemoryShape) -> Compaction:
        a, options = shape.attention, self.options
        stretch, window = _stretch(shape, self.name), options.window(a.budget_tokens)
        least = options.sinks + window + stretch
        if a.budget_tokens < least:
            raise ConfigError(
                f"budget_tokens = {a.budget_tokens}: policy h2o needs at least {least}: {options.sinks} sinks, the "
                f"{window} newest tokens and the {stretch} that are being read"
            )
        return Eviction(a.budget_tokens, stretch, options)


@dataclass(frozen=True)
class Bounded(Policy):
    """`bounded`: sees like keep-all; at the cap, neighbouring regions keep the heavier half of two in the room of one.

    Attributes:
        cap_mb: megabytes that the memory of one text may take, token ids aside.
    """

    name = "bounded"
    cap_mb: int = DEFAULT_CAP_MB
    options: H2OOptions = PRESETS["mean"]

    def compaction(self, shape: MemoryShape) -> Compaction:
        a, stretch = shape.attention, _stretch(shape, self.name)
        group, cap = a.group_tokens, self.cap_mb * 1_000_000
        least = -(-(a.budget_tokens + 2 * stretch) // group) * group
        slots = cap // memory_bytes(shape, group) * group  # small indexes cost least
        while slots >= least and (held := memory_bytes(shape, slots)) > cap:
            slots -= ((held - cap) * slots // held // group + 1) * group
        if slots < least:
            raise ConfigError(
                f"--memory-cap {self.cap_mb}: too few MB for a budget of {a.budget_tokens} tokens; give at least "
                f"{-(-memory_bytes(shape, least) // 1_000_000)}"
            )
        return Merging(slots, stretch, self.options, spared_regions=a.local_regions + 1)


@dataclass(frozen=True)
class InfLLM(Policy):
    """`infllm`: keeps every region; blocks are found by four of their keys, and far ones stand at one distance."""

    name = "infllm"
    local_keys = True

    def attention(self, recipe: AttentionConfig) -> AttentionConfig:
        block, budget = INFLLM_TOKENS, recipe.budget_tokens
        while block > 1 and budget < 2 * INFLLM_MERGE * block:
            block //= 2
        budget = budget // (INFLLM_MERGE * block) * INFLLM_MERGE * block
        local = max(1, (budget // block - INFLLM_MERGE) // 2)  # half of what is left, as 4K of 8K in the original
        return replace(
            recipe,
            budget_tokens=budget,
            region_tokens=block,
            query_region_tokens=0,
            merge=INFLLM_MERGE,
            query_sub=block,
            key_sub=block,
            coarse_sub=block,
            score="max",
            score_angle=local * block - 1,
            combine="raw_sum",
            heads="shared",
            forced="all",
            sink_regions=1,
            local_regions=local,
            positions="one_distance",
            candidates=1 << 40,
            tree="none",
        )


KINDS: dict[str, type[Policy]] = {kind.name: kind for kind in (Policy, Bounded, H2O, Streaming, InfLLM, Full)}
assert set(KINDS) == set(POLICIES)


def of(settings: Settings) -> Policy:
    """The policy that the settings name."""
    return named(settings.policy, h2o=settings.h2o, memory_cap_mb=settings.memory_cap_mb)


def named(name: str, *, h2o: str | None = None, memory_cap_mb: int | None = None) -> Policy:
    """A policy by its name.

    Args:
        h2o: preset by which tokens are scored where some are dropped; None means the policy's own.
        memory_cap_mb: of `bounded`; None means its default.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in KINDS:
        raise ConfigError(f"policy {name!r}: not known; choose one of {', '.join(KINDS)}")
    if h2o is not None and h2o not in PRESETS:
        raise ConfigError(f"--h2o {h2o}: not known; choose one of {', '.join(PRESETS)}")
    kind = KINDS[name]
    values = {"options": PRESETS[h2o]} if h2o and kind in (Bounded, H2O) else {}
    if kind is Bounded and memory_cap_mb is not None:
        values["cap_mb"] = memory_cap_mb
    return kind(**values)


def memory_bytes(shape: MemoryShape, slots: int) -> int:
    """Bytes of a memory with so many slots, a multiple of a group."""
    index = sum(RegionIndex(shape).parts(slots).values())
    return slots * (shape.token_bytes + BOOK_BYTES * shape.layers * shape.kv_heads) + index


def _stretch(shape: MemoryShape, policy: str) -> int:
    """Tokens that a memory which drops some reads at once.

    Raises:
        ConfigError: its keys and values are not kept as they are, or not numbered as they are kept.
    """
    if shape.codec != "raw":
        raise ConfigError(f"--kv-codec {shape.codec}: policy {policy} takes raw keys and values; leave it out")
    attention = shape.attention
    if attention.positions != "compact":
        raise ConfigError(f"positions = {attention.positions}: policy {policy} numbers what it keeps; choose compact")
    return attention.group_tokens * max(1, attention.budget_tokens // (STRETCHES * attention.group_tokens))


EVERYTHING = 1 << 62


@dataclass
class AttentionSpec:
    """What every attention layer of one engine shares.

    Attributes:
        inv_freq: [D/2] of the model's own rotary embedding; `rope_scaling` its attention scaling.
        policy: what later tokens attend to.
    """

    attention: AttentionConfig
    inv_freq: Tensor
    rope_scaling: float
    policy: Policy = field(default_factory=Policy)
    _tables: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def budget_for(self, layer: int) -> int:
        """Tokens that a query of this layer may attend to."""
        dense = self.policy.sees_all or layer < self.attention.dense_layers
        return EVERYTHING if dense else self.attention.budget_tokens

    def options(self, layer: int) -> SelectionOptions:
        """What the oracle needs to know."""
        values = {f.name: getattr(self.attention, f.name) for f in fields(SelectionOptions)}
        score = "infllm" if self.policy.local_keys else values["score"]
        return SelectionOptions(**{**values, "budget_tokens": self.budget_for(layer), "score": score})

    def rope(self, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of at least `positions` positions, [P, D], cached."""
        table = self._tables.get(like.dtype)
        if table is None or len(table[0]) < positions:
            size = max(positions, 2048 if table is None else 2 * len(table[0]))
            table = rope_table(self.inv_freq.to(like.device), size, self.rope_scaling, like.dtype)
            self._tables[like.dtype] = table
        return table
