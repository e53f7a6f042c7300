"""The figures for Prometheus: what a known set of turns makes of them, whole, and nothing in them that is not ours to tell."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from omni.clock import Anchor
from omni.export.prometheus import (
    LATENCY_BUCKETS_S,
    MAX_INSTANCES,
    PROCESS_METRICS,
    TURN_COUNTERS,
    TURN_HISTOGRAMS,
    ProcessFigures,
    PrometheusExport,
)
from omni.ports import TraceSubscriber
from omni.tracing.events import ChunkReceived, MessageSettled
from omni.tracing.timeline import Timeline

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "prometheus.md"
MS = 1_000_000


def turn(**known):
    return Timeline(trace_id="t", anchor=Anchor(0, 0), **known)


def message(index, status):
    return MessageSettled(mono_ns=0, index=index, recipient="5511999990001", text="Bom dia, Maria", status=status)


ANSWERED = turn(
    ending="completed",
    request_ns=10 * MS,
    first_token_ns=410 * MS,
    first_message_ns=900 * MS,
    completed_ns=4_000 * MS,
    chunks=tuple(ChunkReceived(0, index, "x", None) for index in range(3)),
    num_dropped_chunks=2,
    messages=(message(0, "accepted"), message(1, "accepted")),
)
SEND_FAILED = turn(
    ending="send_failed",
    request_ns=0,
    first_token_ns=8_000 * MS,
    completed_ns=130_000 * MS,
    chunks=(ChunkReceived(0, 0, "x", None),),
    messages=(message(0, "failed"), message(1, "not_sent")),
)
NO_TEXT = turn(ending="timeout", request_ns=5 * MS, completed_ns=60_000 * MS)

FIGURES = ProcessFigures(
    inbox_waiting=3,
    inbox_running=2,
    webhooks_by_verdict={"success": 7, "repeat": 2, "own_message": 1},
    receipts_by_status={"delivered": 4, "read": 1},
    trace_events_pending=12,
    chunk_records_shed=5,
    trace_rows_lost=0,
    spool_bytes=4_096,
    spool_entries=9,
    is_database_up=False,
    ledger_failures=1,
    unledgered_sends=1,
    loop_lag_s_by_quantile={"p50": 0.0002, "p99": 0.004, "max": 0.051, "num_readings": 1.2},
)


def exported(figures=FIGURES):
    return PrometheusExport(lambda: figures)


def samples(export):
    """Every sample by its name and labels, as a scraper reads them; what is zero left out."""
    families = text_string_to_metric_families(export.render().decode())
    return {
        sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.value != 0
    }


def test_a_known_set_of_turns_makes_exactly_these_figures():
    export = exported(ProcessFigures())
    export.turn_ended(ANSWERED, instance_name="shop")
    export.turn_ended(SEND_FAILED, instance_name="shop")
    export.turn_ended(NO_TEXT, instance_name="clinic")
    assert samples(export) == {
        "omni_turns_total|completed|shop": 1,
        "omni_turns_total|send_failed|shop": 1,
        "omni_turns_total|timeout|clinic": 1,
        "omni_messages_total|shop|accepted": 2,
        "omni_messages_total|shop|failed": 1,
        "omni_messages_total|shop|not_sent": 1,
        "omni_chunks_received_total|shop": 6,
        **histogram("omni_first_token_latency_seconds", "shop", [0.4, 8.0]),
        **histogram("omni_first_message_seconds", "shop", [0.9]),
        **histogram("omni_turn_duration_seconds", "shop", [4.0, 130.0]),
        **histogram("omni_turn_duration_seconds", "clinic", [60.0]),
    }


def histogram(name, instance, values_s):
    """What a histogram of these values reads as; a value on a bound is in that bucket."""
    told = {f"{name}_count|{instance}": len(values_s), f"{name}_sum|{instance}": sum(values_s)}
    for bound in LATENCY_BUCKETS_S:
        num_in = sum(value <= bound for value in values_s)
        if num_in:
            told[f"{name}_bucket|{instance}|{bound}"] = num_in
    return told | {f"{name}_bucket|{instance}|+Inf": len(values_s)}


def test_what_the_process_knows_makes_exactly_these_figures():
    assert samples(exported()) == {
        "omni_receipts_total|delivered": 4,
        "omni_receipts_total|read": 1,
        "omni_webhooks_total|success": 7,
        "omni_webhooks_total|repeat": 2,
        "omni_webhooks_total|own_message": 1,
        "omni_inbox_waiting": 3,
        "omni_inbox_running": 2,
        "omni_trace_events_pending": 12,
        "omni_chunk_records_shed_total": 5,
        "omni_spool_bytes": 4_096,
        "omni_spool_entries": 9,
        "omni_ledger_failures_total": 1,
        "omni_unledgered_sends_total": 1,
        "omni_loop_lag_seconds|0.5": 0.0002,
        "omni_loop_lag_seconds|0.99": 0.004,
        "omni_loop_lag_seconds|1": 0.051,
    }
    text = exported().render().decode()
    assert "\nomni_database_up 0.0\n" in text
    assert "\nomni_trace_rows_lost_total 0.0\n" in text


def test_what_nobody_knows_is_left_out_and_not_zero():
    text = exported(ProcessFigures()).render().decode()
    unknown = [metric.name for metric in PROCESS_METRICS if metric.name != "omni_receipts"]
    assert [name for name in unknown if name in text] == []


def test_a_turn_without_a_duration_is_in_no_bucket_of_it():
    """No text came, so there is no first token: neither 0 s nor the time-out is one."""
    export = exported(ProcessFigures())
    export.turn_ended(NO_TEXT, instance_name="shop")
    told = samples(export)
    assert [name for name in told if "first" in name] == []
    assert told["omni_turn_duration_seconds_count|shop"] == 1


def test_every_ending_is_there_from_the_first_turn_on():
    """A rate needs the zero before the first one."""
    export = exported(ProcessFigures())
    export.turn_ended(ANSWERED, instance_name="shop")
    text = export.render().decode()
    assert 'omni_turns_total{ending="interrupted",instance="shop"} 0.0' in text


def test_instances_beyond_the_bound_share_a_name():
    export = exported(ProcessFigures())
    for number in range(MAX_INSTANCES + 20):
        export.turn_ended(NO_TEXT, instance_name=f"shop-{number}")
    export.turn_ended(NO_TEXT, instance_name="shop-0")
    told = samples(export)
    names = {name.split("|")[2] for name in told if name.startswith("omni_turns_total")}
    assert len(names) == MAX_INSTANCES + 1
    assert told["omni_turns_total|timeout|other"] == 20
    assert told["omni_turns_total|timeout|shop-0"] == 2


def test_only_our_own_words_become_labels():
    figures = ProcessFigures(
        webhooks_by_verdict={
            "success": 1,
            "Olá Maria!": 2,
            "5511999990001": 3,
            **{f"word_{'x' * n}": 1 for n in range(60)},
        },
        receipts_by_status={"read": 1, "sent by Maria": 2},
    )
    told = samples(exported(figures))
    assert told["omni_receipts_total|other"] == 2
    assert sum(value for name, value in told.items() if name.startswith("omni_webhooks_total")) == 66
    assert [name for name in told if "Maria" in name or "5511" in name] == []
    assert len([name for name in told if name.startswith("omni_webhooks_total")]) <= 51


def test_no_text_phone_or_key_is_in_the_output():
    export = exported()
    export.turn_ended(ANSWERED, instance_name="shop")
    text = export.render().decode()
    assert [word for word in ("Bom dia", "Maria", "5511999990001") if word in text] == []


def test_an_instance_name_is_quoted_and_cannot_break_the_format():
    export = exported(ProcessFigures())
    export.turn_ended(NO_TEXT, instance_name='a"} 1\nomni_fake 2\\')
    assert "omni_fake" not in {name.split("|")[0] for name in samples(export)}


def test_it_is_a_trace_subscriber():
    subscriber: TraceSubscriber = exported()
    assert subscriber.turn_ended(NO_TEXT, instance_name="shop") is None


def declared():
    for metric in TURN_COUNTERS:
        labels = ["instance"] if metric.label is None else ["instance", metric.label]
        yield f"{metric.name}_total", "counter", labels
    for metric in TURN_HISTOGRAMS:
        yield metric.name, "histogram", ["instance"]
    for metric in PROCESS_METRICS:
        suffix = "_total" if metric.kind == "counter" else ""
        yield metric.name + suffix, metric.kind, [] if metric.label is None else [metric.label]


def test_the_page_lists_every_metric_and_no_other():
    rows = re.findall(
        r"^\| `(omni_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    documented = [(name, kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels, _ in rows]
    assert documented == list(declared())


def test_the_page_names_only_metrics_there_are():
    """Queries and alerts that name a metric nobody exports would be silent for ever."""
    suffixes = ("_bucket", "_count", "_sum", "")
    known = {name + suffix for name, _, _ in declared() for suffix in suffixes}
    named = set(re.findall(r"\bomni_[a-z_]+\b", PAGE.read_text(encoding="utf-8")))
    assert sorted(named - known) == []


@pytest.mark.parametrize("name", [name for name, _, _ in declared()])
def test_names_carry_a_prefix_and_no_abbreviated_unit(name):
    assert re.fullmatch(r"omni_[a-z_]+", name)
    assert not re.search(r"_(ms|secs?|kb|mb)(_|$)", name)
