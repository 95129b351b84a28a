"""/metrics in Prometheus's form: the queue, tokens read, reused and said, how they were run, and memory by tier."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as FORM
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from app.records import Done

if TYPE_CHECKING:
    from app.api.reading import BackgroundReading
    from app.api.routes import Queue
    from app.chat import DocumentChat

__all__ = ["FORM", "Metrics", "merged"]
SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counts answers as they end; what stands at the moment is looked at when it is asked for."""

    def __init__(self) -> None:
        self._watched: list[tuple[DocumentChat, Queue, BackgroundReading]] = []
        self._registry = CollectorRegistry()
        self._answers = Counter("lectern_answers", "Answers by how they ended", ["ended"], registry=self._registry)
        self._tokens = Counter(
            "lectern_tokens", "Tokens of prompts run (read) and found in memory (reused), and of answers (said)",
            ["kind"], registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "lectern_first_token_seconds", "From the place in the queue to the first token", buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def watch(self, chat: "DocumentChat", queue: "Queue", reading: "BackgroundReading") -> None:
        """Look at one more library when it is asked for; the owner's is the first."""
        self._watched.append((chat, queue, reading))

    def answered(self, done: Done) -> None:
        """Count an answer."""
        stats = done.stats
        self._answers.labels(stats.ended or "stopped").inc()
        self._first.observe(stats.seconds_to_first_token)
        kinds = {"read": stats.tokens_read, "reused": stats.tokens_reused, "said": stats.new_tokens}
        for kind, tokens in kinds.items():
            self._tokens.labels(kind).inc(tokens)

    def refused(self) -> None:
        """Count an answer that was not given."""
        self._answers.labels("refused").inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks of a collector."""
        watched = tuple(self._watched)
        lengths = [queue.lengths() for _, queue, _ in watched]
        waiting, running = sum(waits for waits, _ in lengths), sum(runs for _, runs in lengths)
        yield GaugeMetricFamily("lectern_answers_waiting", "Requests that wait for the model", waiting)
        yield GaugeMetricFamily("lectern_answers_running", "Requests that are answered", running)
        documents = sum(len(reading.documents()) for _, _, reading in watched)
        yield GaugeMetricFamily("lectern_documents_waiting", "Documents in the queue to be read", documents)
        model = watched[0][0].model
        ready = model.model_state().state == "ready"
        yield GaugeMetricFamily("lectern_ready", "1 when the model is loaded", int(ready))
        if not ready:
            return
        engine, lines = model.engine(), [chat.model.memory_line() for chat, _, _ in watched]
        yield GaugeMetricFamily("lectern_reading_tokens_per_second", "Speed measured last", engine.tokens_per_s)
        yield CounterMetricFamily("lectern_steps", "Batches of tokens run", engine.together.batches)
        yield CounterMetricFamily("lectern_step_tokens", "Tokens in these batches", engine.together.tokens)
        memory = GaugeMetricFamily("lectern_memory_bytes", "Keys and values by where they are", labels=["tier"])
        for tier in ("device", "host", "disk"):
            memory.add_metric([tier], sum(getattr(line, f"{tier}_bytes") for line in lines))
        yield memory


class _Families:
    """A registry of metrics that are there already."""

    def __init__(self) -> None:
        self.by_name: dict[str, Metric] = {}

    def collect(self) -> Iterator[Metric]:
        yield from self.by_name.values()


def merged(texts: Mapping[str, str]) -> bytes:
    """The metrics of several replicas, by their names, as one text: each sample says whose it is."""
    families = _Families()
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text):
            known = families.by_name.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples += [s._replace(labels={**s.labels, "replica": replica}) for s in family.samples]
    return generate_latest(families)  # it asks for nothing but collect()
