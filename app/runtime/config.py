"""Configuration of the runtime, one frozen dataclass per subject. Needs no torch."""

from dataclasses import dataclass

from app.errors import ConfigError


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is sampled. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 5:
            raise ConfigError(f"temperature {self.temperature}: must lie between 0 and 5")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p {self.top_p}: must lie above 0 and at most 1")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max-new-tokens {self.max_new_tokens}: must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed}: must lie between 0 and 2**63 - 1")


@dataclass(frozen=True)
class AttentionConfig:
    """The attention recipe: MSA-1 of MS-Attn with the choices that are ours, saved in `lectern.json`.

    Attributes:
        budget_tokens: tokens one query may attend to; a query whose past fits sees all of it.
        region_tokens: C_K and C_Q, tokens of one region.
        merge: m, neighbouring query regions that share one selection in prefill.
        query_sub: tokens averaged into one query representative (1: every query counts).
        key_sub: tokens averaged into one key representative.
        local_regions: regions before a group's own that are always attended.
        candidates: regions that the coarse cut leaves for the fine score; everything is scored finely below that.
        coarse_sub: tokens averaged into one key representative of the coarse cut.
    """

    budget_tokens: int = 4096
    region_tokens: int = 64
    merge: int = 2
    query_sub: int = 4
    key_sub: int = 4
    local_regions: int = 1
    candidates: int = 128
    coarse_sub: int = 16

    def __post_init__(self) -> None:
        for name in ("region_tokens", "merge", "query_sub", "key_sub", "candidates", "coarse_sub"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be positive")
        subs = (self.query_sub, self.key_sub, self.coarse_sub)
        if any(self.region_tokens % sub for sub in subs) or self.coarse_sub % self.key_sub:
            raise ConfigError(
                f"region_tokens = {self.region_tokens}: must be a multiple of query_sub, key_sub and coarse_sub "
                f"{subs}, and coarse_sub of key_sub"
            )
        least = (self.merge + self.local_regions + 2) * self.region_tokens
        if self.budget_tokens % self.group_tokens or self.budget_tokens < least:
            raise ConfigError(
                f"budget_tokens = {self.budget_tokens}: must be a multiple of {self.group_tokens} and at least {least}"
            )

    @property
    def group_tokens(self) -> int:
        """Tokens of a merged query group: where selections are anchored and blocks are sealed."""
        return self.region_tokens * self.merge

    @property
    def budget_regions(self) -> int:
        return self.budget_tokens // self.region_tokens
