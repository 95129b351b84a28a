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
