"""The side-by-side run on this CPU: what its figures are set against. Its turns are those of `peers.py`."""

from benchmarks import cpu


def test_the_best_of_each_kind_counts() -> None:
    made = {"lectern": (2.0, 10.0), "transformers float32": (3.0, 40.0), "transformers bfloat16": (9.0, 20.0)}
    made |= {"llama.cpp q, flash attention": (8.0, 30.0), "llama.cpp q, plain attention": (10.0, 8.0)}
    side = {name: {"read_processor_s": read, "step_processor_ms": step} for name, (read, step) in made.items()}
    assert cpu._ratios(4096, side) == {
        "tokens": 4096,
        "read_times_faster_than_transformers": 1.5,
        "step_over_transformers": 0.5,
        "read_times_faster_than_llama.cpp": 4.0,
        "step_over_llama.cpp": 1.25,
    }
