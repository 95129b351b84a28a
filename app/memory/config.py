"""Configuration of the runtime, one frozen dataclass per subject. Needs no torch."""

from dataclasses import dataclass

from app.errors import ConfigError
from app.kernels.options import SelectionOptions
from app.settings import LOOKUPS

TREES = ("similar", "adjacent", "none")
COUNTS = ("candidates", "coarse_sub", "tree_from_tokens", "decode_tree_from_tokens", "tree_beam")


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is sampled, and when it ends. Temperature 0 is greedy.

    Attributes:
        repeat_tokens: an answer ends when so many tokens repeat what stands before them; 0 lets it go on.
        log_probs: tell how likely each token was, and so many of the likeliest in its place; None tells nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()
    repeat_tokens: int = 96
    log_probs: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 5:
            raise ConfigError(f"temperature {self.temperature}: must lie between 0 and 5")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p {self.top_p}: must lie above 0 and at most 1")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max-new-tokens {self.max_new_tokens}: must be at least 1")
        if self.repeat_tokens < 0:
            raise ConfigError(f"repeat-tokens {self.repeat_tokens}: must be 0 or more")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed}: must lie between 0 and 2**63 - 1")


@dataclass(frozen=True)
class DecodeConfig:
    """How the tokens of an answer choose regions, saved in `lectern.json` too; memories do not depend on it.

    Attributes:
        reselect_every: tokens that share one choice, in all layers or by layer; 1 chooses for each token.
        draft_tokens: tokens of a draft; of texts beyond the budget the answer then sees what the draft looked at. 0
            answers at once.
        lookup: what finds the regions of texts beyond the budget that an answer sees: `attention`, the `words` of the
            question, or `both`.
    """

    reselect_every: int | tuple[int, ...] = 1
    draft_tokens: int = 0
    lookup: str = "attention"

    def __post_init__(self) -> None:
        every = self.reselect_every
        numbers = every if isinstance(every, list | tuple) else [every]
        if not numbers or any(type(number) is not int or number < 1 for number in numbers):
            raise ConfigError(f"reselect_every = {every!r}: must be a whole number from 1 on, or one for each layer")
        if numbers is every:
            object.__setattr__(self, "reselect_every", tuple(every))
        if type(self.draft_tokens) is not int or self.draft_tokens < 0:
            raise ConfigError(f"draft_tokens = {self.draft_tokens!r}: must be a whole number, 0 for none")
        if self.lookup not in LOOKUPS:
            raise ConfigError(f"lookup = {self.lookup!r}: not known; choose one of {', '.join(LOOKUPS)}")


@dataclass(frozen=True)
class AttentionConfig(SelectionOptions):
    """The attention recipe, saved in `lectern.json`: MSA-1 with its options, and how the runtime finds regions.

    Attributes:
        candidates: regions that the first cut leaves for the fine score; everything is scored finely below that.
        coarse_sub: tokens averaged into one key representative of the coarse cut.
        tree: `similar` or `adjacent` clusters of key means, searched by beam; `none` scores every region.
        tree_from_tokens: query groups with so many tokens behind them search the tree; others score every region.
        decode_tree_from_tokens: the same for a single query, which can afford to miss nothing for longer.
        tree_beam: nodes of each level of the tree whose children are looked at.
    """

    candidates: int = 128
    coarse_sub: int = 16
    tree: str = "similar"
    tree_from_tokens: int = 16384
    decode_tree_from_tokens: int = 262144
    tree_beam: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in COUNTS:
            self._at_least(name, 1)
        if self.tree not in TREES:
            raise ConfigError(f"tree = {self.tree!r}: not known; choose one of {', '.join(TREES)}")
        if self.permute != "adjacent":
            raise ConfigError(f"permute = {self.permute!r}: a memory that grows by segments takes only adjacent")
        if self.score == "infllm":
            raise ConfigError(
                f"score = {self.score!r}: a memory does not keep the queries it needs; take max or minmax"
            )
        if self.region_tokens % self.coarse_sub or self.coarse_sub % self.key_sub:
            raise ConfigError(
                f"coarse_sub = {self.coarse_sub}: must divide region_tokens = {self.region_tokens} and be a "
                f"multiple of key_sub = {self.key_sub}"
            )
        if self.group_tokens % self.region_tokens:
            raise ConfigError(
                f"merge = {self.merge}: that many query regions of {self.query_tokens} tokens must fill whole "
                f"regions of {self.region_tokens}"
            )
        kept = self.forced_sinks - self.first_near(0)
        least = (kept + 1) * self.region_tokens + self.group_tokens
        if self.budget_tokens % self.group_tokens or self.budget_tokens < least:
            raise ConfigError(
                f"budget_tokens = {self.budget_tokens}: must be a multiple of {self.group_tokens} and at least {least}"
            )

    @property
    def votes_by_means(self) -> bool:
        """Whether each KV head chooses by votes for means of keys."""
        return (self.score, self.combine, self.heads) == ("max", "votes", "kv")

    @property
    def searches_tree(self) -> bool:
        """Whether long texts are searched by tree, which follows such votes."""
        return self.votes_by_means and self.tree != "none"
