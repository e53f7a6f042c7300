"""Receipts on the timeline: any order, repetition and loss gives the right state, and storing changes nothing of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.tracing.test_streaming_context import open_turn, read_back, tell_joke

from omni.channels.whatsapp.webhook import parse_event
from omni.clock import Anchor
from omni.model import MessageOutcome, OutboundMessage
from omni.ports import TraceRow
from omni.settings import Settings
from omni.testing import MemoryStore
from omni.tracing.document import delivery_document, streaming_document
from omni.tracing.events import (
    AgentRequested,
    ChunkReceived,
    MessageSettled,
    ReceiptSeen,
    StreamCompleted,
    StreamFailed,
    TraceOpened,
    TurnEnded,
)
from omni.tracing.journal import TraceJournal
from omni.tracing.losses import LossCount
from omni.tracing.receipts import MessageReceipts
from omni.tracing.rows import RowPlanner
from omni.tracing.stored import read_stored_trace
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.summary import headline, streaming_summary
from omni.tracing.timeline import build_timeline

MS = 1_000_000
S = 1_000 * MS
DAY = 86_400 * S
ZERO = Anchor(wall_ns=1_795_342_680 * S, mono_ns=0)

RANK = {"pending": 0, "not_sent": 0, "failed": 0, "accepted": 1, "delivered": 2, "read": 3}


def message(index=0, *, status="accepted", at_ms=100, key_id="", **changes):
    """A message whose sending began at ``at_ms`` and took 50 ms; its key is K and its index."""
    settled = MessageSettled(
        mono_ns=(at_ms + 50) * MS,
        index=index,
        recipient="5511999990001",
        text=f"part {index}",
        status=status,
        queued_ns=(at_ms - 10) * MS,
        started_ns=at_ms * MS,
        accepted_ns=(at_ms + 50) * MS if status == "accepted" else None,
        key_id=f"K{index}" if key_id == "" else key_id,
    )
    return structs.replace(settled, **changes)


def receipt(status, at_ms, *, index=0, event_ms=None, uncertainty_ms=None, **changes):
    seen = ReceiptSeen(
        mono_ns=at_ms * MS,
        key_id=f"K{index}",
        status=status,
        event_ns=None if event_ms is None else event_ms * MS,
        event_uncertainty_ms=uncertainty_ms,
    )
    return structs.replace(seen, **changes)


def timeline_of(*events, anchor=ZERO):
    return build_timeline("t", anchor, events)


def states(timeline):
    return [(each.status, each.error) for each in timeline.messages]


def counts(timeline):
    document = delivery_document(timeline)
    names = ("sent", "accepted", "delivered", "read", "unknown", "failed", "success_percent")
    return tuple(document[name] for name in names)


def test_a_recorded_series_of_receipts_ends_as_read(capture_receipts):
    """Evolution relays them as they come: delivered, server, read, played, error, and pending under another address."""
    timeline = timeline_of(message(key_id="3EB062FC76156D8A8A2791"), *capture_receipts("09"))
    assert states(timeline) == [("read", None)]
    assert timeline.receipts == (
        MessageReceipts(
            statuses=("delivered", "server_ack", "read", "failed", "pending", "deleted"),
            delivered_ns=8120 * MS,
            read_ns=8753 * MS,
        ),
    )
    assert headline(timeline) == "sent by request: 1 message delivered, read after 9 s"


def test_a_receipt_that_came_by_both_webhooks_counts_once(capture_receipts):
    timeline = timeline_of(message(key_id="3EB0BF7CA49767CDACC1FE"), *capture_receipts("18"))
    assert (states(timeline), timeline.receipts[0].statuses) == ([("delivered", None)], ("delivered",))
    assert counts(timeline) == (1, 1, 1, 0, 0, 0, 100.0)


@pytest.fixture
def capture_receipts(capture):
    """The receipts of a recording as events, timed by the moment the recording names."""

    def read(number):
        recording = capture(number)
        webhooks = [
            webhook["body"]
            for name in ("webhooks", "lid_update_webhooks", "delete_webhooks", "webhooks_in_arrival_order")
            for webhook in recording.get(name, [])
        ]
        for body in webhooks:
            for item in parse_event(body, instance_name="shop").items:
                if hasattr(item, "status"):
                    yield ReceiptSeen(
                        mono_ns=item.claimed_wall_ns - ZERO.wall_ns, key_id=item.key_id, status=item.status
                    )

    return read


STATUSES = ["pending", "server_ack", "delivered", "read", "failed", "deleted"]


def expected_status(sent_as, seen):
    """The rules said once more, as sets: what is the most that is known."""
    for status in ("read", "delivered"):
        if status in seen:
            return status
    if "failed" in seen:
        return "failed"
    return "accepted" if "server_ack" in seen else sent_as


receipts_of_one = st.lists(
    st.tuples(st.sampled_from(STATUSES), st.integers(0, 40 * 86_400_000), st.none() | st.integers(-5_000, 10_000)),
    max_size=10,
)


@given(
    sent_as=st.sampled_from(["accepted", "failed", "not_sent", "pending"]),
    seen=receipts_of_one,
    position=st.integers(0, 10),
)
def test_any_order_repetition_and_loss_gives_the_state_the_rules_name(sent_as, seen, position):
    events = [
        receipt(status, at_ms, event_ms=None if early_ms is None else at_ms - early_ms, uncertainty_ms=1000)
        for status, at_ms, early_ms in seen
    ]
    events.insert(position, message(status=sent_as))  # a receipt may come before the send's own answer
    timeline = timeline_of(*events, TurnEnded(mono_ns=200 * MS, ending="completed"))
    told = timeline.receipts[0]
    assert timeline.messages[0].status == expected_status(sent_as, {status for status, _, _ in seen})
    assert set(told.statuses) == {status for status, _, _ in seen}
    first = {
        status: min((max(at_ms, 100) for name, at_ms, _ in seen if name == status), default=None)
        for status in ("delivered", "read")
    }
    if None not in first.values():
        first["delivered"] = min(first.values())
    assert (told.delivered_ns, told.read_ns) == tuple(
        None if first[status] is None else first[status] * MS for status in ("delivered", "read")
    )
    figures = [told.delivered_ns, told.read_ns, told.delivered_event_ns, told.read_event_ns]
    assert all(figure is None or figure >= 100 * MS for figure in figures)
    assert (timeline.ending, timeline.completed_ns, timeline.last_outcome_ns) == ("completed", 200 * MS, 150 * MS)


@given(seen=receipts_of_one, order=st.randoms(use_true_random=False))
def test_the_order_of_receipts_changes_nothing(seen, order):
    at_different_times = {at_ms: (status, at_ms, early_ms) for status, at_ms, early_ms in seen}
    events = [receipt(status, at_ms, event_ms=early_ms) for status, at_ms, early_ms in at_different_times.values()]
    shuffled = [*events, *events[:3], message()]
    order.shuffle(shuffled)
    assert timeline_of(*shuffled) == timeline_of(message(), *events)


@given(first=receipts_of_one, more=receipts_of_one)
def test_what_is_known_only_grows(first, more):
    before = timeline_of(message(), *[receipt(status, at_ms) for status, at_ms, _ in first])
    after = timeline_of(message(), *[receipt(status, at_ms) for status, at_ms, _ in [*first, *more]])
    one, other = before.messages[0].status, after.messages[0].status
    assert RANK[one] <= RANK[other] or (one, other) == ("accepted", "failed")


@given(seen=receipts_of_one, messages=st.integers(1, 3), origin_ns=st.integers(0, 10**15))
def test_storing_changes_nothing_of_a_timeline_with_receipts(seen, messages, origin_ns):
    """One timeline feeds every number: what is read tomorrow is what was said today."""
    anchor = Anchor(wall_ns=ZERO.wall_ns, mono_ns=origin_ns)
    events = [
        TraceOpened(mono_ns=0, columns={"instance_name": "shop"}),
        *[message(index, at_ms=100 + 60 * index) for index in range(messages)],
        TurnEnded(mono_ns=500 * MS, ending="completed"),
    ]
    events += [
        receipt(
            status, at_ms, index=at_ms % 4, event_ms=early_ms, uncertainty_ms=at_ms % 7, is_wall_timed=bool(at_ms % 2)
        )
        for status, at_ms, early_ms in seen
    ]
    events = [moved(event, origin_ns) for event in events]
    store = MemoryStore()
    planner = RowPlanner("t", anchor, settings=Settings(_env_file=None))
    store.write(planner.plan(events, now_ns=origin_ns, flush_now=True))
    before = build_timeline("t", anchor, events)
    after = read_stored_trace(store.get_trace("t"), store.get_payloads("t")).timeline
    assert after.receipts == before.receipts
    assert delivery_document(after) == delivery_document(before)
    assert (headline(after), after.stages, after.ending) == (headline(before), before.stages, before.ending)


def moved(event, origin_ns):
    """The event on a monotonic clock that began earlier."""
    names = [name for name in event.__struct_fields__ if name.endswith("_ns")]
    values = {name: getattr(event, name) for name in names}
    return structs.replace(event, **{name: value + origin_ns for name, value in values.items() if value is not None})


def test_nothing_heard_is_unknown_and_not_failed():
    timeline = timeline_of(message(0), message(1, at_ms=200), receipt("pending", 300, index=1))
    assert counts(timeline) == (2, 2, 0, 0, 2, 0, None)
    assert headline(timeline) == "sent by request: 2 messages accepted"


def test_read_implies_delivered_whose_own_time_stays_unknown():
    timeline = timeline_of(message(), receipt("read", 6_000, event_ms=5_900, uncertainty_ms=1_000))
    assert counts(timeline) == (1, 1, 1, 1, 0, 0, 100.0)
    assert timeline.receipts[0] == MessageReceipts(
        statuses=("read",), read_ns=6_000 * MS, read_event_ns=5_900 * MS, event_uncertainty_ms=1_000
    )


def test_a_word_of_delivery_that_comes_after_that_of_reading_is_no_later_than_it():
    timeline = timeline_of(
        message(),
        receipt("read", 6_000, event_ms=5_900, uncertainty_ms=1_000),
        receipt("delivered", 9_000, event_ms=8_000, uncertainty_ms=3_000),
    )
    assert timeline.receipts[0] == MessageReceipts(
        statuses=("read", "delivered"),
        delivered_ns=6_000 * MS,
        read_ns=6_000 * MS,
        delivered_event_ns=5_900 * MS,
        read_event_ns=5_900 * MS,
        event_uncertainty_ms=3_000,
    )


def test_a_message_whatsapp_refused_failed_and_evolution_had_accepted_it():
    timeline = timeline_of(
        message(0),
        message(1, at_ms=200),
        receipt("failed", 900, index=1),
        TurnEnded(mono_ns=300 * MS, ending="completed"),
    )
    assert states(timeline) == [("accepted", None), ("failed", "WhatsApp reported an error")]
    assert counts(timeline) == (2, 2, 0, 0, 1, 1, 0.0)
    assert timeline.ending == "completed"  # receipts never change the ending


def test_a_send_that_broke_off_was_sent_when_whatsapp_confirms_it():
    lost = message(0, status="failed", error_kind="ambiguous", error="no answer within 30 s")
    told = timeline_of(lost, receipt("delivered", 2_000), TurnEnded(mono_ns=300 * MS, ending="send_failed"))
    assert states(told) == [("delivered", "no answer within 30 s")]
    assert (counts(told), told.ending) == ((1, 1, 1, 0, 0, 0, 100.0), "send_failed")
    assert states(timeline_of(lost, receipt("server_ack", 2_000))) == [("accepted", "no answer within 30 s")]
    assert states(timeline_of(lost, receipt("pending", 2_000))) == [("failed", "no answer within 30 s")]


def test_a_receipt_a_month_late_counts_and_leaves_the_turn_as_it_was():
    turn = [message(), TurnEnded(mono_ns=300 * MS, ending="completed")]
    timeline = timeline_of(*turn, receipt("read", 0, mono_ns=30 * DAY))
    assert headline(timeline) == "sent by request: 1 message delivered, read after 30 d"
    assert timeline.stages == timeline_of(*turn).stages
    assert timeline.turn_total_ms == 300


def test_a_deleted_message_keeps_its_status_and_is_noted():
    timeline = timeline_of(message(), receipt("delivered", 400), receipt("deleted", 500))
    (told,) = delivery_document(timeline)["messages"]
    assert (told["status"], told["is_deleted"], told["receipts"]) == ("delivered", True, ["delivered", "deleted"])


def test_receipts_of_notices_count_like_those_of_any_message():
    timeline = timeline_of(message(is_notice=True), receipt("delivered", 400))
    assert counts(timeline) == (1, 1, 1, 0, 0, 0, 100.0)


def test_a_receipt_of_another_message_joins_none():
    timeline = timeline_of(message(0), message(1, key_id=None), receipt("read", 400, index=1))
    assert [told.statuses for told in timeline.receipts] == [(), ()]


def test_no_event_is_earlier_than_its_own_cause():
    """A zone that is wrong, or a wall clock that was set back, must not make a figure negative."""
    timeline = timeline_of(message(), receipt("read", -7_000, event_ms=-9_000, uncertainty_ms=500, is_wall_timed=True))
    assert timeline.receipts[0] == MessageReceipts(
        statuses=("read",), read_ns=100 * MS, read_event_ns=100 * MS, event_uncertainty_ms=500
    )


def test_the_document_tells_each_message_whole():
    timeline = timeline_of(
        message(),
        receipt("delivered", 1_200, event_ms=1_150, uncertainty_ms=1_000),
        receipt("read", 6_000, event_ms=5_900, uncertainty_ms=1_000),
    )
    assert delivery_document(timeline) == {
        "messages": [
            {
                "index": 0,
                "text": "part 0",
                "key_id": "K0",
                "first_chunk": None,
                "last_chunk": None,
                "queued_ms": 90.0,
                "started_ms": 100.0,
                "accepted_ms": 150.0,
                "delivered_ms": 1200.0,
                "read_ms": 6000.0,
                "delivered_event_ms": 1150.0,
                "read_event_ms": 5900.0,
                "event_uncertainty_ms": 1000,
                "receipts": ["delivered", "read"],
                "status": "read",
                "is_deleted": False,
                "attempts": 1,
                "status_code": None,
                "error": None,
                "is_notice": False,
            }
        ],
        "sent": 1,
        "accepted": 1,
        "delivered": 1,
        "read": 1,
        "unknown": 0,
        "failed": 0,
        "success_percent": 100.0,
        "tail_lag_ms": None,
    }
    summary = streaming_summary(timeline)
    assert (summary["messages_accepted"], summary["messages_delivered"], summary["messages_read"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("receipts", "told"),
    [
        ([("delivered", 400, 0), ("delivered", 400, 1), ("delivered", 450, 2)], "3 messages delivered"),
        (
            [("read", 900, 0), ("read", 6_100, 1), ("read", 5_000, 2)],
            "3 messages delivered, read after 6 s",
        ),
        ([("delivered", 400, 0), ("read", 6_100, 1)], "2 of 3 messages delivered, 1 read after 6 s"),
        ([("read", 900, 0)], "1 of 3 messages delivered, read after 900 ms"),
        ([("read", 119_000, 0)], "1 of 3 messages delivered, read after 119 s"),
        ([("read", 150 * 60_000, 0)], "1 of 3 messages delivered, read after 2 h"),
        ([("read", 5 * 60_000, 0), ("failed", 800, 1)], "1 of 3 messages delivered, 1 failed, read after 5 min"),
        ([("failed", 800, 1)], "3 messages accepted, 1 failed"),
        ([("server_ack", 800, 1)], "3 messages accepted"),
    ],
)  # fmt: skip
def test_the_headline_says_delivered_only_when_whatsapp_did(receipts, told):
    timeline = timeline_of(
        *[message(index) for index in range(3)],
        *[receipt(status, at_ms, index=index) for status, at_ms, index in receipts],
    )
    assert headline(timeline) == f"sent by request: {told}"


def log_sent(trace, clock, *, index=0, key_id="K0"):
    text = OutboundMessage(index=index, recipient="5511999990001", text="Why", start=0, end=3)
    started_ns = clock.mono_ns()
    clock.advance_ms(40)
    trace.log_message(
        MessageOutcome(
            message=text,
            status="accepted",
            attempts=1,
            queued_ns=started_ns,
            started_ns=started_ns,
            ended_ns=clock.mono_ns(),
            key_id=key_id,
        )
    )


def test_a_receipt_is_stored_as_a_stage_of_the_turn_it_belongs_to(tracer, store, recorder, clock):
    """The turn is long over: another journal of the same trace takes it, as for the message of an earlier process."""
    trace = open_turn(tracer)
    trace.await_delivery()
    tell_joke(trace, clock)
    log_sent(trace, clock)
    trace.end_turn("completed")
    assert tracer.flush()
    clock.advance_ms(2_000)
    now_ns = clock.mono_ns()
    again = TraceJournal(trace.trace_id, trace.anchor, recorder)
    again.append(
        ReceiptSeen(mono_ns=now_ns, key_id="K0", status="read", event_ns=now_ns - 300 * MS, event_uncertainty_ms=1_000)
    )
    stored = read_back(tracer, store, trace)
    row = stored.payloads[-1]
    assert (row.stage, row.payload_type) == ("message_receipt", "webhook")
    assert row.payload == {
        "key_id": "K0",
        "status": "read",
        "event_at": "2026-11-22T10:00:02.200000+00:00",
        "event_uncertainty_ms": 1_000,
        "is_wall_timed": False,
        "omni": {"offset_us": 2_500_000, "event_us": 2_200_000},
    }
    document = streaming_document(stored)
    assert (document["status"], document["ending"]) == ("completed", "completed")
    assert document["headline"].endswith("first token after 150 ms, 1 message delivered, read after 2 s")
    (told,) = document["delivery"]["messages"]
    assert (told["read_ms"], told["read_event_ms"], told["event_uncertainty_ms"]) == (2500.0, 2200.0, 1000)


def test_a_payload_that_is_no_receipt_is_passed_over(tracer, store):
    trace = open_turn(tracer)
    trace.log_stage("message_receipt", {"key_id": "K0", "status": "seen"})
    trace.log_stage("message_receipt", {"key_id": 7, "status": "read"})
    assert read_back(tracer, store, trace).timeline.receipts == ()


def test_a_turn_closed_twice_counts_as_closed_the_last_time(tracer, store, clock):
    """Recovery closes a trace at once, and again when what was left of the answer is out."""
    trace = open_turn(tracer)
    trace.await_delivery()
    trace.log_agent_request({"message": "oi"})
    clock.advance_ms(100)
    trace.log_streaming_chunk("olá", 0)
    trace.log_streaming_error("Omni died", "interrupted", ending="interrupted")
    trace.end_turn("interrupted", error_message="Omni died", error_stage="interrupted")
    clock.advance_ms(5_000)
    log_sent(trace, clock)
    between = read_back(tracer, store, trace)
    trace.end_turn("interrupted", error_message="the rest was sent", error_stage="interrupted")
    after = read_back(tracer, store, trace)
    assert structs.asdict(between.timeline.stages) == {
        "queue_ms": 0.0,
        "agent_wait_ms": 100.0,
        "stream_ms": 0.0,
        "delivery_tail_ms": 0.0,
        "unaccounted_ms": 0.0,
        "turn_total_ms": 100.0,
    }
    assert structs.asdict(after.timeline.stages) == {
        "queue_ms": 0.0,
        "agent_wait_ms": 100.0,
        "stream_ms": 0.0,
        "delivery_tail_ms": 5040.0,
        "unaccounted_ms": 0.0,
        "turn_total_ms": 5140.0,
    }
    told = (after.timeline.ending, after.timeline.error_message, after.row.total_processing_time_ms)
    assert told == ("interrupted", "the rest was sent", 5140)
    assert after.timeline.stages == trace.timeline.stages


moments = st.none() | st.integers(0, 10_000)


@given(request=moments, first=moments, end=moments, outcome=moments, completed=moments)
def test_stages_add_up_and_none_is_negative(request, first, end, outcome, completed):
    """Whatever two processes' clocks say."""
    events = [TurnEnded(mono_ns=completed * MS, ending="interrupted")] if completed is not None else []
    if request is not None:
        events.append(AgentRequested(mono_ns=request * MS, payload={}, is_streaming=True))
    if first is not None:
        events.append(ChunkReceived(first * MS, 0, "olá"))
    if end is not None:
        events.append(StreamCompleted(mono_ns=end * MS, final_content="olá"))
    if outcome is not None:
        events.append(message(mono_ns=outcome * MS))
    stages = structs.astuple(timeline_of(*events).stages)
    assert all(stage is None or stage >= 0 for stage in stages)
    *parts, total = (stage for stage in stages)
    if total is not None:
        assert sum(part for part in parts if part is not None) == pytest.approx(total)


def test_partial_text_is_kept_whole_when_chunk_records_were_shed(clock):
    """The chunks that were kept are no longer the text; the text is stored beside them, and both are read back."""
    store = MemoryStore()
    journal = TraceJournal("t", ZERO, None)
    journal.append(TraceOpened(mono_ns=0, columns={}))
    trace = StreamingTraceContext("t", journal=journal, clock=clock)
    trace.log_streaming_chunk("one ", 0, at_ns=10 * MS)
    trace.log_streaming_chunk("three", 2, at_ns=30 * MS)
    trace.log_streaming_error("cut", ending="incomplete", content="one two three", at_ns=40 * MS)
    planner = RowPlanner("t", ZERO, settings=Settings(_env_file=None), losses=LossCount(num_shed=1))
    store.write(planner.plan(journal.events, now_ns=0, flush_now=True))
    before = build_timeline("t", ZERO, journal.events, num_dropped_chunks=1)
    after = read_stored_trace(store.get_trace("t"), store.get_payloads("t")).timeline
    for timeline in (before, after):
        assert (timeline.content, timeline.total_chunks, timeline.num_dropped_chunks) == ("one two three", 3, 1)
        assert [chunk.text for chunk in timeline.chunks] == ["one ", "three"]
        assert timeline.is_content_verified is None


@pytest.mark.parametrize(
    ("texts", "content", "verified"),
    [(["a", "b"], "ab", True), (["a", "b"], None, None), ([], "ab", None), ([], None, None), (["a"], "ab", False)],
)
def test_partial_text_is_told_the_same_before_and_after_storing(texts, content, verified):
    events = [TraceOpened(mono_ns=0, columns={})]
    events += [ChunkReceived((10 + index) * MS, index, text) for index, text in enumerate(texts)]
    events.append(
        StreamFailed(
            mono_ns=50 * MS,
            ending="timeout",
            error_message="silence",
            error_type="AgentTimeout",
            error_stage="streaming_error",
            content=content,
        )
    )
    store = MemoryStore()
    planner = RowPlanner("t", ZERO, settings=Settings(_env_file=None))
    store.write(planner.plan(events, now_ns=0, flush_now=True))
    before = build_timeline("t", ZERO, events)
    after = read_stored_trace(TraceRow(trace_id="t", received_at=ZERO.at(0)), store.get_payloads("t")).timeline
    told = [(each.content, each.is_content_verified, len(each.chunks)) for each in (before, after)]
    assert told == [("".join(texts) if content is None else content, verified, len(texts))] * 2
