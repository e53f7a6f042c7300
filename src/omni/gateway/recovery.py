"""Finishes at start what processes that died left undone; ``recovery_plan`` decides, this carries it out.

It begins before the first webhook is taken, so that what waited keeps its place before what comes now: questions are queued again and
begun answers go back into their chats' lanes. Then every open trace is closed as ``interrupted`` with the text received so far, a few
hundred at a time. Resumed answers go on behind that; their traces get the outcomes as they become known.

Reads happen in worker threads. Runs on the event loop.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from uuid import uuid4

from msgspec import Struct, structs

from omni.channels.whatsapp.delivery import AnswerDelivery, Delivery
from omni.clock import Clock, wall_datetime
from omni.gateway.answer_story import NoteSent
from omni.gateway.inbox import Inbox
from omni.gateway.notices import NoticeBook
from omni.gateway.recovery_plan import GivenUp, RecoveryPlan, Resumption, plan_recovery, settled
from omni.model import InstanceConfig, MessageOutcome
from omni.ports import InstanceStore, Ledger, LedgerReader, LeftWork, PutInbound, PutOutbound, TraceReader
from omni.records import InboxRecord, OutboxRecord
from omni.settings import Settings
from omni.tracing.interrupted import DIED, close_interrupted
from omni.tracing.service import ReopenedTrace, Tracer
from omni.tracing.trace_context import TraceContext

log = logging.getLogger(__name__)

# Traces read, closed and written together: some hundred milliseconds of work.
_BATCH = 200


class RecoveryParts(Struct, frozen=True, kw_only=True):
    """What recovery works with."""

    ledger: Ledger
    ledger_reader: LedgerReader
    traces: TraceReader
    tracer: Tracer
    instances: InstanceStore
    inbox: Inbox
    delivery: Delivery
    notices: NoticeBook
    note_sent: NoteSent
    clock: Clock
    settings: Settings


class RecoveryCounts(Struct, frozen=True, kw_only=True):
    """How much was found and what became of it."""

    taken_up: int
    resumed: int
    given_up: int
    closed_traces: int


class Recovery:
    """One start's recovery. ``begin`` it, then leave ``finish`` to a task of yours; both once."""

    def __init__(self, parts: RecoveryParts) -> None:
        self._parts = parts
        self._left = LeftWork(inbox=[], outbox=[], open_traces=[], receipts=[])
        self._plan = RecoveryPlan(resume=[], take_up=[], give_up=[], settle=[], close=[])
        self._notes: dict[str, str] = {}
        self._resumed: dict[str, Resumption] = {}
        self._sending: list[asyncio.Task[None]] = []

    async def begin(self) -> LeftWork:
        """Take over what dead processes left and put the work back in its queues. Raises StoreError."""
        parts = self._parts
        self._left = await asyncio.to_thread(parts.ledger_reader.take_over)
        self._plan = plan = plan_recovery(
            self._left,
            now=self._now(),
            max_age_s=parts.settings.message_max_age_s,
            max_takes=parts.settings.max_takes,
        )
        for row in plan.settle:
            parts.ledger.post(PutOutbound(settled(row, at=self._now())))
        instances = await asyncio.to_thread(self._load_instances, plan)
        reopened = await asyncio.to_thread(self._reopen, [item.record.trace_id for item in plan.resume])
        for item in plan.resume:
            self._resume(item, instances.get(item.record.instance_name), reopened.get(item.record.trace_id))
        for record in plan.take_up:
            self._take_up(record, instances.get(record.instance_name))
        for given_up in plan.give_up:
            self._give_up(given_up, instances.get(given_up.record.instance_name))
        return self._left

    async def finish(self) -> RecoveryCounts:
        """Close the open traces, wait for the resumed answers, and say what was done. Raises StoreError."""
        plan = self._plan
        to_close = [trace_id for trace_id in plan.close if trace_id not in self._resumed]
        for start in range(0, len(to_close), _BATCH):
            await asyncio.to_thread(self._close, to_close[start : start + _BATCH])
        counts = RecoveryCounts(
            taken_up=len(plan.take_up),
            resumed=len(plan.resume),
            given_up=len(plan.give_up),
            closed_traces=len(plan.close),
        )
        if any(structs.astuple(counts)):
            log.warning("recovered", extra=structs.asdict(counts))
        await asyncio.gather(*self._sending)
        return counts

    async def aclose(self) -> None:
        """Stop waiting for resumed answers; call it when the delivery is closed and every message has its outcome."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    def _take_up(self, record: InboxRecord, instance: InstanceConfig | None) -> None:
        if instance is None:
            self._note_done(record, f"{DIED}, and its instance is no longer configured")
            return
        again = structs.replace(record, trace_id=str(uuid4()), state="stored", version=record.version + 1)
        self._parts.ledger.post(PutInbound(again))
        self._notes[record.trace_id] = f"{DIED}; the message was taken up again as trace {again.trace_id}"
        self._parts.inbox.take_up(instance, again, after_trace_id=record.trace_id)

    def _give_up(self, given_up: GivenUp, instance: InstanceConfig | None) -> None:
        record = given_up.record
        self._note_done(record, f"{DIED}; not asked again: {given_up.reason}")
        if given_up.reason == "taken_too_often" and instance is not None and record.message is not None:
            # The user waits still; somebody who wrote long ago does not.
            answer = self._parts.delivery.open_answer(
                instance,
                record.message.reply_to,
                chat_key=record.chat_key,
                on_outcome=lambda _: None,
                answer_id=f"{record.trace_id}/given-up",
                trace_id=record.trace_id,
            )
            self._add_notice(answer, instance, has_text=False)
            answer.finish()

    def _resume(self, item: Resumption, instance: InstanceConfig | None, reopened: ReopenedTrace | None) -> None:
        record = item.record
        if instance is None or record.message is None or reopened is None:
            for row in item.outbox:
                if row.state in ("queued", "sending"):
                    self._parts.ledger.post(PutOutbound(settled(row, at=self._now())))
            self._note_done(record, f"{DIED}, and its instance is no longer configured")
            return
        self._resumed[record.trace_id] = item
        note = f"{DIED}; what was left of the answer was sent after the restart"
        close_interrupted(reopened, item.outbox, note=note, is_resumed=True)
        trace, content = reopened.context, reopened.context.timeline.content
        answer = self._parts.delivery.resume_answer(
            instance,
            record.message.reply_to,
            chat_key=record.chat_key,
            on_outcome=self._outcome_logger(trace, record.instance_name),
            records=item.outbox,
            answer_id=record.trace_id,
            trace_id=record.trace_id,
        )
        answer.feed_rest(content, trace.timeline.chunks)
        is_told = any(row.is_notice for row in item.outbox)
        if not item.is_text_complete and not is_told:
            self._add_notice(answer, instance, has_text=bool(content.strip()))
        answer.finish()
        self._sending.append(asyncio.create_task(self._await_rest(answer, trace, record, note), name="omni-resumed"))

    async def _await_rest(self, answer: AnswerDelivery, trace: TraceContext, record: InboxRecord, note: str) -> None:
        await answer.wait_done()
        # Closed again: now everything about the turn is known.
        trace.end_turn("interrupted", error_message=note, error_stage="interrupted")
        self._note_done(record, note)

    def _outcome_logger(self, trace: TraceContext, instance_name: str) -> Callable[[MessageOutcome], None]:
        def log_outcome(outcome: MessageOutcome) -> None:
            if outcome.key_id is not None:
                self._parts.note_sent(instance_name, outcome.key_id, trace)
            trace.log_message(outcome, is_notice=outcome.message.first_chunk is None)

        return log_outcome

    def _add_notice(self, answer: AnswerDelivery, instance: InstanceConfig, *, has_text: bool) -> None:
        notice = self._parts.notices.notice_for(instance, "interrupted", has_text=has_text)
        if notice is not None:
            answer.notice(notice)

    def _note_done(self, record: InboxRecord, note: str) -> None:
        self._notes[record.trace_id] = note
        done = structs.replace(record, state="done", version=record.version + 1, message=None)
        self._parts.ledger.post(PutInbound(done))

    def _close(self, trace_ids: Sequence[str]) -> None:
        reopened = self._reopen(trace_ids)
        rows_by_trace: dict[str | None, list[OutboxRecord]] = {}
        for row in self._left.outbox:
            is_open = row.state in ("queued", "sending")
            rows_by_trace.setdefault(row.trace_id, []).append(settled(row, at=self._now()) if is_open else row)
        for trace_id, one in reopened.items():
            close_interrupted(one, rows_by_trace.get(trace_id, []), note=self._notes.get(trace_id, DIED))

    def _reopen(self, trace_ids: Sequence[str]) -> Mapping[str, ReopenedTrace]:
        rows = self._parts.traces.get_traces(trace_ids)
        payloads = self._parts.traces.get_payloads_of(trace_ids)
        return {row.trace_id: self._parts.tracer.reopen(row, payloads.get(row.trace_id, [])) for row in rows}

    def _load_instances(self, plan: RecoveryPlan) -> dict[str, InstanceConfig | None]:
        records = [*plan.take_up, *(item.record for item in plan.resume), *(item.record for item in plan.give_up)]
        return {name: self._parts.instances.get(name) for name in {record.instance_name for record in records}}

    def _now(self) -> datetime:
        return wall_datetime(self._parts.clock.wall_ns())
