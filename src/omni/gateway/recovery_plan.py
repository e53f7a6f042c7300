"""Decides what becomes of the work a process that died left behind. Pure.

Nothing a user has seen is done over. A message nobody saw an answer to is taken up again from the beginning, in the order the messages
came; an answer of which a part may have gone out is finished as far as its text is known and then closed.

    resume    part of the answer went out, or all of it was ready to: the rest is sent, and no agent is asked again;
              so with a question that cannot be asked again: what there is of its answer is sent, and its user told
    take_up   nothing went out: the question is asked anew, on a trace of its own
    give_up   nobody is told any more: it is too old by now, or its user had asked to stop
    settle    outgoing messages that nobody will send any more
    close     traces that are open: every one of the dead process, those of resumed answers included
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct, structs

from omni.ports import LeftWork
from omni.records import InboxRecord, OutboxRecord


class Resumption(Struct, frozen=True, kw_only=True):
    """An answer to finish. ``outbox`` holds its messages by index; ``is_text_complete`` that the agent had said everything.

    ``reason`` is why it is not asked again although nothing of it went out, None where something may have.
    """

    record: InboxRecord
    outbox: Sequence[OutboxRecord]
    is_text_complete: bool = False
    reason: Literal["taken_too_often", "unreadable"] | None = None


class GivenUp(Struct, frozen=True, kw_only=True):
    """A message that is not answered any more, and why."""

    record: InboxRecord
    reason: Literal["too_old", "stopped"]


class RecoveryPlan(Struct, frozen=True, kw_only=True):
    """What is to be done, each list in the order the messages came."""

    resume: Sequence[Resumption]
    take_up: Sequence[InboxRecord]
    give_up: Sequence[GivenUp]
    settle: Sequence[OutboxRecord]
    close: Sequence[str]


def plan_recovery(left: LeftWork, *, now: datetime, max_age_s: int, max_takes: int) -> RecoveryPlan:
    """The plan for what was left. ``max_age_s`` counts from WhatsApp's stamp, or from the reception where there is none."""
    outbox_by_trace: dict[str | None, list[OutboxRecord]] = {}
    for row in left.outbox:
        outbox_by_trace.setdefault(row.trace_id, []).append(row)
    resume: list[Resumption] = []
    take_up: list[InboxRecord] = []
    give_up: list[GivenUp] = []
    for record in left.inbox:
        rows = sorted(outbox_by_trace.get(record.trace_id, []), key=lambda row: row.index)
        if any(row.answer_id != record.trace_id for row in rows):
            # The user had asked to stop: there is a word of farewell, and nothing to finish.
            give_up.append(GivenUp(record=record, reason="stopped"))
        elif record.state == "delivering" or any(row.state in ("sending", "accepted", "failed") for row in rows):
            resume.append(Resumption(record=record, outbox=rows, is_text_complete=record.state == "delivering"))
        elif _age_s(record, now) > max_age_s:
            give_up.append(GivenUp(record=record, reason="too_old"))
        elif record.message is None:
            resume.append(Resumption(record=record, outbox=rows, reason="unreadable"))
        elif record.num_takes >= max_takes:
            resume.append(Resumption(record=record, outbox=rows, reason="taken_too_often"))
        else:
            take_up.append(record)
    for item in resume:
        outbox_by_trace.pop(item.record.trace_id, None)
    unsettled = [row for rows in outbox_by_trace.values() for row in rows if row.state in ("queued", "sending")]
    return RecoveryPlan(resume=resume, take_up=take_up, give_up=give_up, settle=unsettled, close=list(left.open_traces))


def settled(row: OutboxRecord, *, at: datetime) -> OutboxRecord:
    """The final state of an outgoing message that nobody will send any more: not sent, or unknown when an attempt had begun."""
    if row.state == "sending":
        return structs.replace(
            row,
            state="failed",
            version=row.version + 1,
            ended_at=at,
            error_kind="ambiguous",
            error="Omni died while it was being sent",
        )
    return structs.replace(
        row, state="not_sent", version=row.version + 1, ended_at=at, error="Omni died before it was sent"
    )


def _age_s(record: InboxRecord, now: datetime) -> float:
    message = record.message
    if message is None or message.sent_at_s is None:
        return (now - record.received_at) / timedelta(seconds=1)
    return now.timestamp() - message.sent_at_s
