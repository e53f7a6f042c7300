"""Omni's figures for Prometheus, each declared once, below; docs/reference/prometheus.md has a row for each.

Two sources: turns that ended, whose figures are read from their Timeline (so that no metric disagrees with a trace), and what the
process knows of itself when it is asked. Names carry their unit. Labels are our own fixed words and the names of instances, and of
these no more than ``MAX_INSTANCES``: nothing a user writes, no number, no key ever becomes a label.

It keeps no global registry and adds no metrics of the interpreter. A figure nobody knows is left out, not zero.
"""

import re
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from omni.model import Ending, MessageStatus, ReceiptStatus
from omni.tracing.timeline import Timeline

MAX_INSTANCES = 100
"""Instances with figures of their own; those that come later share the name ``other``."""
OTHER = "other"

LATENCY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0)
"""People notice half a second and leave after half a minute; in between the steps are small."""

_MS_PER_S = 1_000
# How the event loop's lag names its figures, and how Prometheus does.
_QUANTILES = {"p50": "0.5", "p99": "0.99", "max": "1"}
# A word of ours: what a part of Omni calls a reason. Anything else shares the label ``other``, and so does the fiftieth.
_WORD = re.compile(r"[a-z][a-z_]{0,39}")
_MAX_WORDS = 50


class ProcessFigures(Struct, frozen=True, kw_only=True):
    """What the process knows of itself at one moment; None and left-out words are not known. Counts are since its start.

    The loop's lag is in seconds under ``p50``, ``p99`` and ``max``.
    """

    inbox_waiting: int | None = None
    inbox_running: int | None = None
    webhooks_by_verdict: Mapping[str, int] = {}
    receipts_by_status: Mapping[str, int] = {}
    trace_events_pending: int | None = None
    chunk_records_shed: int | None = None
    trace_rows_lost: int | None = None
    spool_bytes: int | None = None
    spool_entries: int | None = None
    is_database_up: bool | None = None
    ledger_failures: int | None = None
    unledgered_sends: int | None = None
    loop_lag_s_by_quantile: Mapping[str, float] = {}


class TurnCounter(Struct, frozen=True, kw_only=True):
    """A count over ended turns, by instance and by ``label`` when there is one; ``words`` are all values of that label."""

    name: str
    about: str
    read: Callable[[Timeline], Mapping[str, int]]
    label: str | None = None
    words: Sequence[str] = ("",)


class TurnHistogram(Struct, frozen=True, kw_only=True):
    """A duration of ended turns in seconds, by instance; turns that do not have it are not in it."""

    name: str
    about: str
    read_ms: Callable[[Timeline], float | None]
    buckets_s: Sequence[float] = LATENCY_BUCKETS_S


class ProcessMetric(Struct, frozen=True, kw_only=True):
    """A figure of the process: one number, or one for each word of ``label``."""

    name: str
    about: str
    kind: Literal["counter", "gauge"]
    read: Callable[[ProcessFigures], float | None] | None = None
    label: str | None = None
    read_by_word: Callable[[ProcessFigures], Mapping[str, float]] | None = None


TURN_COUNTERS = (
    TurnCounter(
        name="omni_turns",
        about="Turns that ended, by how.",
        label="ending",
        words=get_args(Ending),
        read=lambda timeline: {} if timeline.ending is None else {timeline.ending: 1},
    ),
    TurnCounter(
        name="omni_messages",
        about="Messages for WhatsApp, by what was known of them when their turn ended.",
        label="status",
        words=get_args(MessageStatus),
        read=lambda timeline: Counter(message.status for message in timeline.messages),
    ),
    TurnCounter(
        name="omni_chunks_received",
        about="Pieces of text received from agents, those whose record was shed included.",
        read=lambda timeline: {"": timeline.total_chunks},
    ),
)
TURN_HISTOGRAMS = (
    TurnHistogram(
        name="omni_first_token_latency_seconds",
        about="From writing the agent request to the first visible text.",
        read_ms=lambda timeline: timeline.first_token_latency_ms,
    ),
    TurnHistogram(
        name="omni_first_message_seconds",
        about="From receiving the user's message to Evolution accepting the first one of the answer.",
        read_ms=lambda timeline: None if timeline.first_message_ns is None else timeline.first_message_ns / 1e6,
    ),
    TurnHistogram(
        name="omni_turn_duration_seconds",
        about="From receiving the user's message until everything about its turn was known.",
        read_ms=lambda timeline: timeline.turn_total_ms,
    ),
)
PROCESS_METRICS = (
    ProcessMetric(
        name="omni_receipts",
        about="Receipts from WhatsApp, by status.",
        kind="counter",
        label="status",
        read_by_word=lambda figures: _only(figures.receipts_by_status, get_args(ReceiptStatus)),
    ),
    ProcessMetric(
        name="omni_webhooks",
        about="What was decided about webhooks: success, or the reason why not.",
        kind="counter",
        label="verdict",
        read_by_word=lambda figures: _bounded(figures.webhooks_by_verdict),
    ),
    ProcessMetric(
        name="omni_inbox_waiting",
        about="Messages that wait for their turn.",
        kind="gauge",
        read=lambda figures: figures.inbox_waiting,
    ),
    ProcessMetric(
        name="omni_inbox_running",
        about="Chats whose message is being answered.",
        kind="gauge",
        read=lambda figures: figures.inbox_running,
    ),
    ProcessMetric(
        name="omni_trace_events_pending",
        about="Trace events not yet written.",
        kind="gauge",
        read=lambda figures: figures.trace_events_pending,
    ),
    ProcessMetric(
        name="omni_chunk_records_shed",
        about="Records of chunks that were not kept because too many waited; their text is in the answer.",
        kind="counter",
        read=lambda figures: figures.chunk_records_shed,
    ),
    ProcessMetric(
        name="omni_trace_rows_lost",
        about="Rows of traces that could be stored nowhere.",
        kind="counter",
        read=lambda figures: figures.trace_rows_lost,
    ),
    ProcessMetric(
        name="omni_spool_bytes",
        about="Size of the local spool.",
        kind="gauge",
        read=lambda figures: figures.spool_bytes,
    ),
    ProcessMetric(
        name="omni_spool_entries",
        about="Writes in the local spool that wait for the database.",
        kind="gauge",
        read=lambda figures: figures.spool_entries,
    ),
    ProcessMetric(
        name="omni_database_up",
        about="1 while the database takes writes, 0 while the spool takes them instead.",
        kind="gauge",
        read=lambda figures: None if figures.is_database_up is None else int(figures.is_database_up),
    ),
    ProcessMetric(
        name="omni_ledger_failures",
        about="Entries of inbox, outbox or receipts that neither database nor spool could take.",
        kind="counter",
        read=lambda figures: figures.ledger_failures,
    ),
    ProcessMetric(
        name="omni_unledgered_sends",
        about="Messages sent although the outbox could not be written before.",
        kind="counter",
        read=lambda figures: figures.unledgered_sends,
    ),
    ProcessMetric(
        name="omni_loop_lag_seconds",
        about="How late the event loop runs what is due, over its newest readings.",
        kind="gauge",
        label="quantile",
        read_by_word=lambda figures: {
            quantile: figures.loop_lag_s_by_quantile[name]
            for name, quantile in _QUANTILES.items()
            if name in figures.loop_lag_s_by_quantile
        },
    ),
)


class PrometheusExport(Collector):
    """Observes ended turns (a ``TraceSubscriber``) and renders everything on request. Both are safe from any thread."""

    def __init__(self, figures: Callable[[], ProcessFigures]) -> None:
        self._figures = figures
        self._lock = threading.Lock()
        self._turns_by_instance: dict[str, _TurnFigures] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def turn_ended(self, timeline: Timeline, *, instance_name: str) -> None:
        """Count one turn. Some microseconds; never blocks for longer than a copy of the counts takes."""
        with self._lock:
            figures = self._turns_by_instance.get(instance_name)
            if figures is None:
                name = instance_name if len(self._turns_by_instance) < MAX_INSTANCES else OTHER
                figures = self._turns_by_instance.setdefault(name, _TurnFigures())
            figures.take(timeline)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format 0.0.4, UTF-8. Milliseconds with many instances: call it off the event loop."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry that asked for names when the collector joins would have to collect for them."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metric families, as prometheus-client asks for them."""
        with self._lock:
            turns = {name: figures.copy() for name, figures in self._turns_by_instance.items()}
        yield from (_turn_counter(metric, turns) for metric in TURN_COUNTERS)
        yield from (_turn_histogram(metric, turns) for metric in TURN_HISTOGRAMS)
        process = self._figures()
        for metric in PROCESS_METRICS:
            family = _process_metric(metric, process)
            if family.samples:
                yield family


class _Histogram:
    __slots__ = ("bounds_s", "counts", "total_ms")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.total_ms = 0.0

    def take(self, value_ms: float) -> None:
        self.counts[bisect_left(self.bounds_s, value_ms / _MS_PER_S)] += 1
        self.total_ms += value_ms

    def copy(self) -> "_Histogram":
        copied = _Histogram(self.bounds_s)
        copied.counts, copied.total_ms = list(self.counts), self.total_ms
        return copied


class _TurnFigures:
    """The counts of one instance."""

    __slots__ = ("counts", "histograms")

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {metric.name: Counter() for metric in TURN_COUNTERS}
        self.histograms = {metric.name: _Histogram(metric.buckets_s) for metric in TURN_HISTOGRAMS}

    def take(self, timeline: Timeline) -> None:
        for counter in TURN_COUNTERS:
            self.counts[counter.name].update(counter.read(timeline))
        for histogram in TURN_HISTOGRAMS:
            value_ms = histogram.read_ms(timeline)
            if value_ms is not None:
                self.histograms[histogram.name].take(value_ms)

    def copy(self) -> "_TurnFigures":
        copied = _TurnFigures()
        copied.counts = {name: counts.copy() for name, counts in self.counts.items()}
        copied.histograms = {name: histogram.copy() for name, histogram in self.histograms.items()}
        return copied


def _turn_counter(metric: TurnCounter, turns: Mapping[str, _TurnFigures]) -> Metric:
    labels = ["instance"] if metric.label is None else ["instance", metric.label]
    family = CounterMetricFamily(metric.name, metric.about, labels=labels)
    for instance_name, figures in turns.items():
        for word in metric.words:
            values = [instance_name] if metric.label is None else [instance_name, word]
            family.add_metric(values, figures.counts[metric.name][word])
    return family


def _turn_histogram(metric: TurnHistogram, turns: Mapping[str, _TurnFigures]) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.about, labels=["instance"])
    for instance_name, figures in turns.items():
        histogram = figures.histograms[metric.name]
        buckets: list[tuple[str, float]] = []
        num_so_far = 0
        for bound, count in zip([*map(str, metric.buckets_s), "+Inf"], histogram.counts, strict=True):
            num_so_far += count
            buckets.append((bound, num_so_far))
        family.add_metric([instance_name], buckets, sum_value=round(histogram.total_ms / _MS_PER_S, 6))
    return family


def _process_metric(metric: ProcessMetric, figures: ProcessFigures) -> Metric:
    labels = [] if metric.label is None else [metric.label]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(metric.name, metric.about, labels=labels)
    if metric.read_by_word is not None:
        for word, value in metric.read_by_word(figures).items():
            family.add_metric([word], value)
    elif metric.read is not None:
        number = metric.read(figures)
        if number is not None:
            family.add_metric([], number)
    return family


def _only(counts: Mapping[str, int], words: Sequence[str]) -> dict[str, float]:
    """The counts of these words, 0 where nothing was counted yet; the rest together as ``other``."""
    known: dict[str, float] = {word: counts.get(word, 0) for word in words}
    rest = sum(counts.values()) - sum(known.values())
    return known | {OTHER: rest} if rest else known


def _bounded(counts: Mapping[str, int]) -> dict[str, float]:
    """The counts by word, for words of ours as far as there is room; the rest together as ``other``."""
    words = [word for word in counts if _WORD.fullmatch(word)][:_MAX_WORDS]
    rest = sum(counts.values()) - sum(counts[word] for word in words)
    known: dict[str, float] = {word: counts[word] for word in sorted(words)}
    return known | {OTHER: known.get(OTHER, 0) + rest} if rest else known
