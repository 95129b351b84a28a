"""What select-and-merge attention can be told: the names of MSA-1's choices. Needs no torch."""

from dataclasses import dataclass
from typing import Any

from app.errors import ConfigError

Number = Any  # a number, or a tensor of numbers: this file needs no torch

CHOICES = {
    "permute": ("adjacent", "stride"),
    "score": ("max", "minmax", "infllm"),
    "heads": ("kv", "shared"),
    "combine": ("votes", "raw_sum"),
    "forced": ("all", "own"),
    "positions": ("compact", "original", "one_distance"),
}


@dataclass(frozen=True)
class SelectionOptions:
    """How query groups choose regions and attend to them; the defaults are ours, the other names the papers'.

    Attributes:
        budget_tokens: tokens one query may attend to; a query whose past fits sees all of it.
        region_tokens: C_K, tokens of one key region.
        query_region_tokens: C_Q, tokens of one query region; 0 means `region_tokens`.
        merge: m, query regions that share one selection in prefill.
        permute: which ones: `adjacent`, or `stride`, every m-th of m x m neighbours (Figure 2 of MS-Attn).
        query_sub: tokens averaged into one query representative (C_Q: the paper's plain average).
        key_sub: tokens of one key representative (C_K: the paper's plain average); a region's best one counts.
        score: `max` compares means of key sub-blocks; `minmax` bounds the product with any key of a sub-block by its
            smallest and largest channels (Quest); `infllm` averages the 4 keys that local attention favours.
        score_angle: position at which queries are rotated before they are compared with raw keys; 0 leaves them raw.
        combine: `votes` sums softmaxed scores; `raw_sum` the scores of each query region's mean query.
        heads: `kv` chooses per key/value head, `shared` once for all, by the sum of the heads' votes.
        forced: `all` keeps the sinks, the own regions and those before them; `own` only the own ones (Figure 2).
        sink_regions: regions at the start of the text that are always attended.
        local_regions: regions before each own region that are always attended.
        positions: of the selected keys: `compact` numbers them in text order, `original` leaves them where they were
            (beyond the trained range in a long text), `one_distance` puts all far keys at one distance (InfLLM).
        dense_layers: first layers that see everything at original positions, as Quest has it: quadratic.
    """

    budget_tokens: int = 4096
    region_tokens: int = 64
    query_region_tokens: int = 0
    merge: int = 2
    permute: str = "adjacent"
    query_sub: int = 4
    key_sub: int = 4
    score: str = "max"
    score_angle: int = 0
    combine: str = "votes"
    heads: str = "kv"
    forced: str = "all"
    sink_regions: int = 1
    local_regions: int = 1
    positions: str = "compact"
    dense_layers: int = 0

    def __post_init__(self) -> None:
        for name in ("budget_tokens", "region_tokens", "merge", "query_sub", "key_sub"):
            self._at_least(name, 1)
        for name in ("query_region_tokens", "score_angle", "sink_regions", "local_regions", "dense_layers"):
            self._at_least(name, 0)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: not known; choose one of {', '.join(known)}")
        if self.query_tokens % self.query_sub:
            raise ConfigError(
                f"query_sub = {self.query_sub}: must divide the {self.query_tokens} tokens of a query region"
            )
        if self.region_tokens % self.key_sub:
            raise ConfigError(f"key_sub = {self.key_sub}: must divide region_tokens = {self.region_tokens}")
        if self.score_angle >= self.budget_tokens:
            raise ConfigError(f"score_angle = {self.score_angle}: must be below budget_tokens = {self.budget_tokens}")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} = {value!r}: must be a whole number of at least {least}")

    @property
    def query_tokens(self) -> int:
        """Tokens of one query region."""
        return self.query_region_tokens or self.region_tokens

    @property
    def group_tokens(self) -> int:
        """Tokens of a merged query group: where selections are anchored and blocks are sealed."""
        return self.query_tokens * self.merge

    @property
    def forced_sinks(self) -> int:
        """Regions at the start of a text that every query attends to, whatever they score."""
        return self.sink_regions if self.forced == "all" else 0

    def first_near(self, first: Number) -> Number:
        """First of the regions that are attended for being near, of queries whose own ones begin at `first`.

        `first` may be a number or a tensor of numbers. With `forced_sinks` this is the whole rule of what is attended
        without being scored, for the oracle and for the engine.
        """
        return first - (self.local_regions if self.forced == "all" else 0)

    @property
    def budget_regions(self) -> int:
        return self.budget_tokens // self.region_tokens
