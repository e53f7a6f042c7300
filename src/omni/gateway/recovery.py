"""Finishes what processes that died left undone; ``recovery_plan`` decides, this carries it out.

It begins before the first webhook is taken, so that what waited keeps its place before what comes now: questions are queued again and
begun answers go back into their chats' lanes. Then every open trace is closed as ``interrupted`` with the text received so far, a few
hundred at a time. Resumed answers go on behind that; their traces get the outcomes as they become known. While the server runs it looks
again now and then, for processes that died beside it or were stopped with work left.

Everything it does may be cut off by the next kill and is done again then: what is left stays in the ledger until it is done.

Reads happen in worker threads. Runs on the event loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from uuid import uuid4

from msgspec import Struct, structs

from omni.channels.whatsapp.delivery import AnswerDelivery, Delivery
from omni.clock import Clock, wall_datetime
from omni.errors import StoreError
from omni.gateway.answer_story import NoteSent
from omni.gateway.inbox import Inbox
from omni.gateway.notices import NoticeBook
from omni.gateway.recovery_plan import RecoveryPlan, Resumption, plan_recovery, settled
from omni.model import InboundMessage, InstanceConfig, MessageOutcome
from omni.ports import InstanceStore, Ledger, LedgerReader, LeftWork, PutInbound, PutOutbound, TraceReader, TraceRow
from omni.records import InboxRecord, OutboxRecord
from omni.settings import Settings
from omni.tracing.interrupted import DIED, close_interrupted
from omni.tracing.lost_text import chunk_range
from omni.tracing.service import ReopenedTrace, Tracer
from omni.tracing.stored import StoredTrace, read_stored_trace

log = logging.getLogger(__name__)

# Traces read, closed and written together: some hundred milliseconds of work.
_BATCH = 200
# Longest the last outcomes are waited for once the delivery is closed and all of them are known.
_CLOSING_S = 1.0

Sleep = Callable[[float], Awaitable[None]]


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


class _Closing(Struct, frozen=True, kw_only=True):
    """A trace to close. ``record`` is its message where that is done now: its trace may have to be made; ``is_open`` where it is known."""

    trace_id: str
    note: str
    outbox: Sequence[OutboxRecord]
    record: InboxRecord | None
    is_open: bool


class Recovery:
    """The recovery of one process: ``begin`` it before the first webhook, then leave ``watch`` to a task of yours."""

    def __init__(self, parts: RecoveryParts) -> None:
        self._parts = parts
        self._left: LeftWork | None = None
        self._notes: dict[str, str] = {}
        self._ended: dict[str, InboxRecord] = {}
        self._to_close: list[_Closing] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def begin(self) -> LeftWork:
        """Take over what dead processes left and put the work back in its queues.

        Raises StoreError. What was taken over by then is begun by the next call, or by whoever finds this process dead.
        """
        parts = self._parts
        if self._left is None:
            self._left = await asyncio.to_thread(parts.ledger_reader.take_over)
        left, settings = self._left, parts.settings
        plan = plan_recovery(left, now=self._now(), max_age_s=settings.message_max_age_s, max_takes=settings.max_takes)
        instances = await asyncio.to_thread(self._load_instances, plan)
        resumed_ids = [item.record.trace_id for item in plan.resume if item.record.instance_name in instances]
        reopened = await asyncio.to_thread(self._reopen, resumed_ids)
        # Nothing is waited for from here on: all of it is begun, or none.
        self._left = None
        self._notes, self._ended = {}, {}
        for row in plan.settle:
            parts.ledger.post(PutOutbound(settled(row, at=self._now())))
        for item in plan.resume:
            self._resume(item, instances.get(item.record.instance_name), reopened.get(item.record.trace_id))
        for record in plan.take_up:
            self._take_up(record, instances.get(record.instance_name))
        for given_up in plan.give_up:
            self._end(given_up.record, f"{DIED}; not asked again: {given_up.reason}")
        self._plan_closings(left, {*resumed_ids})
        self._log_counts(plan, num_resumed=len(resumed_ids))
        return left

    async def finish(self) -> None:
        """Close the traces the dead left open. Raises StoreError; the next call goes on where it stopped."""
        while self._to_close:
            batch = self._to_close[:_BATCH]
            await asyncio.to_thread(self._close, batch)
            del self._to_close[: len(batch)]

    async def settled(self) -> None:
        """Wait until every resumed answer has all its outcomes."""
        if self._sending:
            await asyncio.wait(set(self._sending))

    async def watch(self, *, every_s: float, sleep: Sleep = asyncio.sleep) -> None:
        """Finish what was begun; then begin and finish again every ``every_s`` seconds. Never returns.

        A database that is away is said and waited for.
        """
        while True:
            await self._attempt(self.finish)
            await sleep(every_s)
            await self._attempt(self.begin)

    async def aclose(self) -> None:
        """Put the last outcomes of resumed answers on record; call it when the delivery is closed and every message has its own."""
        tasks = set(self._sending)
        if not tasks:
            return
        _, unfinished = await asyncio.wait(tasks, timeout=_CLOSING_S)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)

    async def _attempt(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except StoreError as exc:
            # What is ours by name and could not be done is tried again, by us or by the next start.
            log.error("recovery_failed", extra={"cause": exc.sentence})  # noqa: TRY400 - the cause says it

    def _take_up(self, record: InboxRecord, instance: InstanceConfig | None) -> None:
        if instance is None:
            self._end(record, _NOBODY_ANSWERS)
            return
        again = structs.replace(record, trace_id=str(uuid4()), state="stored", version=record.version + 1)
        self._parts.ledger.post(PutInbound(again))
        self._notes[record.trace_id] = f"{DIED}; the message was taken up again as trace {again.trace_id}"
        self._parts.inbox.take_up(instance, again, after_trace_id=record.trace_id)

    def _resume(self, item: Resumption, instance: InstanceConfig | None, found: ReopenedTrace | None) -> None:
        record = item.record
        if instance is None:
            for row in item.outbox:
                if row.state in ("queued", "sending"):
                    self._parts.ledger.post(PutOutbound(settled(row, at=self._now())))
            self._end(record, _NOBODY_ANSWERS)
            return
        # Nothing is on record of a message whose process died at once, or recorded no traces; its answer is finished all the same.
        reopened = self._open(record) if found is None else found
        is_complete = item.is_text_complete or _has_ended_well(reopened.stored)
        died = DIED if item.reason is None else f"{DIED}; not asked again: {item.reason}"
        close_interrupted(
            reopened, item.outbox, note=f"{died}; what is left of its answer is being sent", is_resumed=True
        )
        content = reopened.context.timeline.content
        outcomes: list[MessageOutcome] = []
        answer = self._parts.delivery.resume_answer(
            instance,
            _recipient_of(item),
            chat_key=record.chat_key,
            on_outcome=self._outcome_logger(reopened, instance.name, outcomes),
            records=item.outbox,
            answer_id=record.trace_id,
            trace_id=record.trace_id,
        )
        answer.feed_rest(content, reopened.context.timeline.chunks)
        if not is_complete and not any(row.is_notice for row in item.outbox):
            notice = self._parts.notices.notice_for(instance, "interrupted", has_text=bool(content.strip()))
            if notice is not None:
                answer.notice(notice)
        answer.finish()
        task = asyncio.create_task(self._await_rest(answer, reopened, record, died, outcomes), name="omni-resumed")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _await_rest(
        self,
        answer: AnswerDelivery,
        reopened: ReopenedTrace,
        record: InboxRecord,
        died: str,
        outcomes: Sequence[MessageOutcome],
    ) -> None:
        await answer.wait_done()
        # Closed again: now everything about the turn is known.
        note = f"{died}; {_told(outcomes)}"
        reopened.context.end_turn("interrupted", error_message=note, error_stage="interrupted")
        self._parts.ledger.post(PutInbound(_done(record)))

    def _outcome_logger(
        self, reopened: ReopenedTrace, instance_name: str, outcomes: list[MessageOutcome]
    ) -> Callable[[MessageOutcome], None]:
        trace, chunks = reopened.context, reopened.context.timeline.chunks

        def log_outcome(outcome: MessageOutcome) -> None:
            outcomes.append(outcome)
            if outcome.key_id is not None:
                self._parts.note_sent(instance_name, outcome.key_id, trace)
            message = outcome.message
            is_notice = message.first_chunk is None
            if not is_notice:
                # As the trace counts them: an answer that came whole has none, and of a stream the last ones may be lost.
                first, last = chunk_range(chunks, message.start, message.end)
                message = structs.replace(message, first_chunk=first, last_chunk=last)
            trace.log_message(structs.replace(outcome, message=message), is_notice=is_notice)

        return log_outcome

    def _end(self, record: InboxRecord, note: str) -> None:
        """Nothing is done for a message any more."""
        self._notes[record.trace_id] = note
        self._ended[record.trace_id] = record
        self._parts.ledger.post(PutInbound(_done(record)))

    def _plan_closings(self, left: LeftWork, resumed_ids: set[str]) -> None:
        rows_by_trace: dict[str | None, list[OutboxRecord]] = {}
        for row in left.outbox:
            if row.state in ("queued", "sending"):
                # What is on record of it ends before the death, whenever the ledger was told.
                rows_by_trace.setdefault(row.trace_id, []).append(settled(row, at=row.started_at or row.queued_at))
            else:
                rows_by_trace.setdefault(row.trace_id, []).append(row)
        open_ids = dict.fromkeys(left.open_traces)
        self._to_close += [
            _Closing(
                trace_id=trace_id,
                note=self._notes.get(trace_id, DIED),
                outbox=rows_by_trace.get(trace_id, []),
                record=self._ended.get(trace_id),
                is_open=trace_id in open_ids,
            )
            for trace_id in {**open_ids, **dict.fromkeys(self._ended)}
            if trace_id not in resumed_ids
        ]

    def _close(self, closings: Sequence[_Closing]) -> None:
        found = self._reopen([closing.trace_id for closing in closings])
        for closing in closings:
            reopened = found.get(closing.trace_id)
            if reopened is None and closing.record is not None:
                reopened = self._open(closing.record)
            elif not closing.is_open:
                continue  # it was closed before, and only the ledger had not heard of it
            if reopened is not None:
                close_interrupted(reopened, closing.outbox, note=closing.note)

    def _open(self, record: InboxRecord) -> ReopenedTrace:
        """A trace for a message of which there is none: its process died before it was stored, or recorded none."""
        message = record.message or _unreadable(record)
        context = self._parts.tracer.open_turn(
            structs.replace(message, raw={"text": message.text}),
            is_streaming=False,
            trace_id=record.trace_id,
            received_at=record.received_at,
        )
        row = TraceRow(trace_id=record.trace_id, whatsapp_message_id=record.message_id, received_at=record.received_at)
        return ReopenedTrace(context=context, stored=read_stored_trace(row, [], anchor=context.anchor))

    def _reopen(self, trace_ids: Sequence[str]) -> Mapping[str, ReopenedTrace]:
        rows = self._parts.traces.get_traces(trace_ids)
        payloads = self._parts.traces.get_payloads_of(trace_ids)
        return {row.trace_id: self._parts.tracer.reopen(row, payloads.get(row.trace_id, [])) for row in rows}

    def _load_instances(self, plan: RecoveryPlan) -> dict[str, InstanceConfig]:
        """Those that still answer: an instance that was removed or switched off meanwhile sends nothing more."""
        records = [*plan.take_up, *(item.record for item in plan.resume)]
        found = (self._parts.instances.get(name) for name in {record.instance_name for record in records})
        return {instance.name: instance for instance in found if instance is not None and instance.is_active}

    def _log_counts(self, plan: RecoveryPlan, *, num_resumed: int) -> None:
        counts = {
            "taken_up": len(plan.take_up),
            "resumed": num_resumed,
            "given_up": len(plan.give_up),
            "closed_traces": len(plan.close),
        }
        if any(counts.values()):
            log.warning("recovered", extra=counts)

    def _now(self) -> datetime:
        return wall_datetime(self._parts.clock.wall_ns())


_NOBODY_ANSWERS = f"{DIED}, and its instance was removed or switched off"


def _done(record: InboxRecord) -> InboxRecord:
    return structs.replace(record, state="done", version=record.version + 1, message=None)


def _has_ended_well(stored: StoredTrace) -> bool:
    """Whether the agent had said everything, by the trace; the ledger hears of it a moment later."""
    response = stored.payload_of("agent_response")
    return response is not None and response.get("success") is True


def _recipient_of(item: Resumption) -> str:
    """Where an answer goes, also when its message cannot be read."""
    if item.record.message is not None:
        return item.record.message.reply_to
    return item.outbox[0].recipient if item.outbox else item.record.chat_key


def _unreadable(record: InboxRecord) -> InboundMessage:
    """What is known of a message that cannot be read."""
    return InboundMessage(
        instance_name=record.instance_name,
        message_id=record.message_id,
        chat_key=record.chat_key,
        reply_to=record.chat_key,
        sender_phone=record.chat_key.partition("@")[0],
        sender_name=None,
        text="",
        message_type="unknown",
    )


def _told(outcomes: Sequence[MessageOutcome]) -> str:
    """What became of the answer after the restart, its notice aside."""
    parts = [outcome for outcome in outcomes if outcome.message.first_chunk is not None]
    num_sent = sum(outcome.status == "accepted" for outcome in parts)
    if not parts:
        return "nothing of its answer was left to send"
    if num_sent == len(parts):
        return "what was left of its answer was sent after the restart"
    return f"of {len(parts)} messages that were left {num_sent} were sent after the restart"
