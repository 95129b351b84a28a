"""A short list of models that can be fetched by name: open licences, no gate, and kinds that Lectern runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Offered:
    """A model of the hub.

    Attributes:
        id: its name there.
        told: what it is good for, in a sentence.
        parameters: how many.
        size_bytes: of its weights, to be fetched.
    """

    id: str
    told: str
    licence: str
    parameters: int
    size_bytes: int

    @property
    def name(self) -> str:
        return self.id.rpartition("/")[2]


def _half(id: str, told: str, licence: str, parameters: int) -> Offered:
    """One whose weights have two bytes each."""
    return Offered(id, told, licence, parameters, 2 * parameters)


CATALOGUE = (
    _half("HuggingFaceTB/SmolLM2-135M-Instruct", "Very small; short answers in English.", "Apache 2.0", 134_515_008),
    _half("HuggingFaceTB/SmolLM2-360M-Instruct", "Small; short answers in English.", "Apache 2.0", 361_821_120),
    _half("Qwen/Qwen2.5-0.5B-Instruct", "Small; answers in many languages.", "Apache 2.0", 494_032_768),
    _half("Qwen/Qwen2.5-1.5B-Instruct", "Middling; better answers, many languages.", "Apache 2.0", 1_543_714_304),
    _half("HuggingFaceTB/SmolLM2-1.7B-Instruct", "Middling; English.", "Apache 2.0", 1_711_376_384),
    _half("mistralai/Mistral-7B-Instruct-v0.3", "Large; wants a GPU.", "Apache 2.0", 7_248_023_552),
)
