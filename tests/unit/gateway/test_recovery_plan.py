"""What becomes of the work a dead process left: never done over when a user may have seen any of it, never forgotten."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from omni.gateway.recovery_plan import plan_recovery, settled
from omni.model import InboundMessage
from omni.ports import LeftWork
from omni.records import InboxRecord, OutboxRecord

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
RECEIVED = NOW - timedelta(seconds=5)


def inbound(message_id="M1", *, state="running", num_takes=1, received_at=RECEIVED, sent_at_s=None):
    message = InboundMessage(
        instance_name="shop",
        message_id=message_id,
        chat_key="5511999990001@s.whatsapp.net",
        reply_to="5511999990001@s.whatsapp.net",
        sender_phone="5511999990001",
        sender_name=None,
        text="oi",
        message_type="text",
        sent_at_s=sent_at_s,
    )
    return InboxRecord(
        instance_name="shop",
        message_id=message_id,
        chat_key=message.chat_key,
        trace_id=f"trace-{message_id}",
        received_at=received_at,
        state=state,
        num_takes=num_takes,
        message=message,
    )


def outbound(state, index=0, *, trace_id="trace-M1"):
    return OutboxRecord(
        message_uid=f"{trace_id}/{index}",
        answer_id=trace_id or "by-request",
        trace_id=trace_id,
        instance_name="shop",
        chat_key="5511999990001@s.whatsapp.net",
        recipient="5511999990001@s.whatsapp.net",
        index=index,
        text="part",
        text_sha256="",
        state=state,
        queued_at=RECEIVED,
    )


def plan(inbox=(), outbox=(), open_traces=(), *, max_age_s=3_600, max_takes=3):
    left = LeftWork(inbox=inbox, outbox=outbox, open_traces=open_traces, receipts=[])
    return plan_recovery(left, now=NOW, max_age_s=max_age_s, max_takes=max_takes)


@pytest.mark.parametrize("states", [(), ("queued",), ("queued", "queued"), ("not_sent",)])
def test_a_question_of_whose_answer_nothing_went_out_is_asked_again(states):
    found = plan([inbound()], [outbound(state, index) for index, state in enumerate(states)])
    assert [record.message_id for record in found.take_up] == ["M1"]
    assert (found.resume, found.give_up) == ([], [])
    assert [row.state for row in found.settle] == [state for state in states if state == "queued"]


@pytest.mark.parametrize("state", ["sending", "accepted", "failed"])
def test_an_answer_of_which_a_part_may_have_gone_out_is_not_started_over(state):
    found = plan([inbound()], [outbound(state, 0), outbound("queued", 1)])
    assert (found.take_up, found.settle) == ([], [])
    assert [
        (item.record.message_id, [row.index for row in item.outbox], item.is_text_complete, item.reason)
        for item in found.resume
    ] == [("M1", [0, 1], False, None)]


def test_an_answer_that_was_whole_is_resumed_as_whole():
    found = plan([inbound(state="delivering")], [outbound("queued")])
    assert [item.is_text_complete for item in found.resume] == [True]


def test_what_is_too_old_by_now_is_given_up():
    now_s = int(NOW.timestamp())
    found = plan([
        inbound("old", sent_at_s=now_s - 3_601),
        inbound("fresh", sent_at_s=now_s - 3_599, num_takes=2),
        inbound("unstamped", received_at=NOW - timedelta(hours=2)),
        structs.replace(inbound("unreadable", received_at=NOW - timedelta(hours=2)), message=None),
    ])  # fmt: skip
    assert [(item.record.message_id, item.reason) for item in found.give_up] == [
        ("old", "too_old"),
        ("unstamped", "too_old"),
        ("unreadable", "too_old"),
    ]
    assert ([record.message_id for record in found.take_up], found.resume) == (["fresh"], [])


def test_what_cannot_be_asked_again_is_finished_with_what_there_is():
    """Somebody waits for it still: what was ready to go out does, and the user is told."""
    unreadable = structs.replace(inbound("unreadable"), message=None)
    queued = outbound("queued", trace_id="trace-poison")
    found = plan([inbound("poison", num_takes=3), unreadable], [queued])
    assert [(item.record.message_id, item.outbox, item.is_text_complete, item.reason) for item in found.resume] == [
        ("poison", [queued], False, "taken_too_often"),
        ("unreadable", [], False, "unreadable"),
    ]
    assert (found.take_up, found.give_up, found.settle) == ([], [], [])


def test_an_answer_its_user_stopped_is_not_finished():
    farewell = structs.replace(outbound("queued"), message_uid="x", answer_id="trace-M1/stopped")
    found = plan([inbound()], [outbound("accepted", 0), outbound("not_sent", 1), farewell])
    assert [(item.record.message_id, item.reason) for item in found.give_up] == [("M1", "stopped")]
    assert (found.resume, found.take_up, found.settle) == ([], [], [farewell])


def test_messages_nobody_asked_for_by_webhook_are_settled_and_not_sent():
    """A text sent by request: its caller got no answer, and will ask again if it matters."""
    rows = [
        outbound("accepted", 0, trace_id=None),
        outbound("sending", 1, trace_id=None),
        outbound("queued", 2, trace_id=None),
    ]
    assert [settled(row, at=NOW).state for row in plan(outbox=rows).settle] == ["failed", "not_sent"]


def test_settling_says_what_is_known():
    sending, queued = (settled(outbound(state), at=NOW) for state in ("sending", "queued"))
    assert (sending.state, sending.error_kind, sending.version, sending.ended_at) == ("failed", "ambiguous", 2, NOW)
    assert (queued.state, queued.error_kind, queued.error) == ("not_sent", None, "Omni died before it was sent")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stored", "running", "delivering"]),
            st.lists(st.sampled_from(["queued", "sending", "accepted", "failed", "not_sent"]), max_size=4),
            st.integers(0, 4),
        ),
        max_size=6,
    )
)
def test_every_message_left_has_exactly_one_fate_and_nothing_seen_is_done_over(turns):
    inbox, outbox = [], []
    for number, (state, states, num_takes) in enumerate(turns):
        inbox.append(inbound(f"M{number}", state=state, num_takes=num_takes))
        outbox += [outbound(each, index, trace_id=f"trace-M{number}") for index, each in enumerate(states)]
    found = plan(inbox, outbox)
    fates = [
        *(item.record.message_id for item in found.resume),
        *(record.message_id for record in found.take_up),
        *(item.record.message_id for item in found.give_up),
    ]
    assert sorted(fates) == sorted(record.message_id for record in inbox)
    seen = {row.trace_id for row in outbox if row.state in ("sending", "accepted", "failed")}
    assert not seen & {record.trace_id for record in found.take_up}
    resumed = {row.message_uid for item in found.resume for row in item.outbox}
    pending = {row.message_uid for row in outbox if row.state in ("queued", "sending")}
    assert pending <= resumed | {row.message_uid for row in found.settle}
    assert not resumed & {row.message_uid for row in found.settle}
    for listed in (found.take_up, [item.record for item in found.resume]):
        assert [record.message_id for record in listed] == sorted(record.message_id for record in listed)


def test_the_settled_row_is_newer_than_the_one_it_replaces():
    row = structs.replace(outbound("queued"), version=7)
    assert settled(row, at=NOW).version == 8
