"""The inbox: decides which webhooks become turns, and answers only when what it decided would survive the process.

It stands between the webhook, which must be acknowledged within milliseconds, and the agent, which takes seconds: ``take`` parses,
looks up, stores the message in the ledger and queues the turn. Repeats are recognised by (instance, message id) for 24 hours, also
while the first of them is still being stored.

Full is an answer, and so is a ledger that takes nothing: ``take`` raises InboxFull, the webhook says 503 and Evolution comes again.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from msgspec import structs

from omni.channels.whatsapp.webhook import parse_event
from omni.clock import NS_PER_S, Anchor, Clock, take_anchor, wall_datetime
from omni.errors import InboxFull, StoreError
from omni.gateway.chat_queues import ChatQueues
from omni.gateway.receipts import ReceiptBook
from omni.gateway.seen_messages import SeenMessages
from omni.gateway.turn import Turn, Verdict
from omni.model import Ignored, InboundMessage, InstanceConfig, Receipt, SentEcho
from omni.ports import Ledger, PutInbound
from omni.records import InboxRecord
from omni.settings import Settings
from omni.tracing.service import Tracer

log = logging.getLogger(__name__)

# A disk that hangs has no limit of its own. Evolution waits thirty seconds, and a repeat finds the message being stored.
_STORED_WITHIN_S = 10.0

_Key = tuple[str, str]


class StopsChats(Protocol):
    """Stops the answer being written in a chat; False when there is none."""

    def __call__(self, instance_name: str, chat_key: str) -> bool:
        """Stop it; what was not sent is dropped."""
        ...


class Inbox:
    """Takes webhooks: turns go to ``queues``, receipts to ``receipts``, Evolution's word of what it sent to ``note_echo``.

    Used on the event loop only. ``num_by_verdict`` counts webhooks by reason, those with none by status, and those that were
    to come again as ``refused``.
    """

    def __init__(
        self,
        queues: ChatQueues,
        *,
        tracer: Tracer,
        ledger: Ledger,
        clock: Clock,
        settings: Settings,
        receipts: ReceiptBook,
        note_echo: Callable[[SentEcho], None],
        stop_chat: StopsChats,
    ) -> None:
        self._queues = queues
        self._tracer = tracer
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._receipts = receipts
        self._note_echo = note_echo
        self._stop_chat = stop_chat
        self._stop_words = {word.strip().casefold() for word in settings.stop_words.split(",") if word.strip()}
        self._seen = SeenMessages(clock)
        self._storing: dict[_Key, asyncio.Task[Verdict]] = {}
        self._is_closing = False
        self.num_by_verdict: Counter[str] = Counter()

    @property
    def num_waiting(self) -> int:
        """Turns queued and not yet begun, and messages being stored."""
        return self._queues.num_waiting + len(self._storing)

    def remember(self, message_ids: Iterable[tuple[str, str]]) -> None:
        """Recognise these (instance, message id) pairs as repeats: what was taken before a restart."""
        for instance_name, message_id in message_ids:
            self._seen.add(instance_name, message_id)

    async def take(self, instance: InstanceConfig, body: Mapping[str, Any]) -> Verdict:
        """Decide about one webhook; returns when that would survive the process. Raises WebhookMalformed and InboxFull.

        Of several messages in one webhook each is decided about; the verdict is that of the first that becomes a turn. When one
        of them cannot be taken, Evolution brings all again, and those taken are repeats then.
        """
        try:
            verdict = await self._decide(instance, body)
        except InboxFull:
            self.num_by_verdict["refused"] += 1
            raise
        self.num_by_verdict[verdict.reason or verdict.status] += 1
        return verdict

    async def _decide(self, instance: InstanceConfig, body: Mapping[str, Any]) -> Verdict:
        arrived = take_anchor(self._clock)
        answers_groups = instance.answers_groups or self._settings.answer_groups
        event = parse_event(body, instance_name=instance.name, answers_groups=answers_groups)
        self._receipts.note_event(instance.name, event, arrived)
        receipts = [item for item in event.items if isinstance(item, Receipt)]
        if receipts:
            return await self._take_receipts(receipts, arrived)
        taking = [self._take_item(instance, item, arrived.mono_ns) for item in event.items]
        decided = [await self._decided(one) if isinstance(one, asyncio.Task) else one for one in taking]
        return next((verdict for verdict in decided if verdict.status == "success"), decided[0])

    def take_up(self, instance: InstanceConfig, record: InboxRecord, *, after_trace_id: str) -> None:
        """Queue a message an earlier process took and nobody saw an answer to; it gets a trace of its own."""
        assert record.message is not None
        trace = self._tracer.open_turn(
            record.message,
            is_streaming=instance.streaming_enabled,
            trace_id=record.trace_id,
            received_at=record.received_at,
            taken_up_from=after_trace_id,
        )
        self._queues.put(Turn(instance=instance, message=record.message, trace=trace, record=record))

    async def aclose(self, *, deadline_s: float) -> None:
        """Take nothing new, let running turns finish until the deadline, then cut them off; each is on record."""
        self._is_closing = True
        if self._storing:
            await asyncio.gather(*self._storing.values(), return_exceptions=True)
        await self._queues.aclose(deadline_s=deadline_s)

    async def _decided(self, taking: asyncio.Task[Verdict]) -> Verdict:
        # It goes on by itself when the caller hangs up or is sent away: what is stored is answered.
        try:
            return await asyncio.wait_for(asyncio.shield(taking), _STORED_WITHIN_S)
        except TimeoutError as exc:
            raise InboxFull("storing the message takes too long; deliver it again later", retryable=True) from exc

    async def _take_receipts(self, receipts: Sequence[Receipt], arrived: Anchor) -> Verdict:
        try:
            are_new = await self._receipts.take(receipts, arrived=arrived)
        except StoreError as exc:
            raise InboxFull("the receipt cannot be stored now; deliver it again later", retryable=True) from exc
        return Verdict(status="success") if any(are_new) else Verdict(status="ignored", reason="repeat")

    def _take_item(
        self, instance: InstanceConfig, item: InboundMessage | Receipt | SentEcho | Ignored, received_ns: int
    ) -> Verdict | asyncio.Task[Verdict]:
        match item:
            case SentEcho():
                self._note_echo(item)
                return Verdict(status="success")
            case InboundMessage():
                return self._take_message(instance, item, received_ns, ignored_because=None)
            case Ignored(message=InboundMessage() as message):
                # A person wrote something that is not answered: the operator should find it.
                return self._take_message(instance, message, received_ns, ignored_because=item.reason)
            case Ignored():
                facts = {"instance": instance.name, "reason": item.reason, "event": item.event}
                log.debug("webhook_ignored", extra=facts)
                return Verdict(status="ignored", reason=item.reason)
            case Receipt():
                raise AssertionError("receipts come in webhooks of their own")

    def _take_message(
        self, instance: InstanceConfig, message: InboundMessage, received_ns: int, *, ignored_because: str | None
    ) -> Verdict | asyncio.Task[Verdict]:
        key = (instance.name, message.message_id)
        storing = self._storing.get(key)
        if storing is not None:
            return self._begin(None, self._repeat_of(storing))
        if self._seen.has(*key):
            return Verdict(status="ignored", reason="repeat")
        if self._is_closing or self.num_waiting >= self._settings.inbox_max_waiting:
            raise InboxFull("too many messages are waiting; deliver this one again later", retryable=True)
        reason = ignored_because or self._reason_not_to_answer(instance, message)
        if reason is None:
            return self._begin(key, self._queue(instance, message, received_ns))
        return self._begin(key, self._record(instance, message, received_ns, reason=reason))

    def _reason_not_to_answer(self, instance: InstanceConfig, message: InboundMessage) -> str | None:
        if message.sent_at_s is not None and self._age_s(message.sent_at_s) > self._settings.message_max_age_s:
            return "too_old"
        is_stop = message.text.strip().casefold() in self._stop_words
        return "stop_word" if is_stop and self._stop_chat(instance.name, message.chat_key) else None

    def _begin(self, key: _Key | None, work: Coroutine[Any, Any, Verdict]) -> asyncio.Task[Verdict]:
        task = asyncio.get_running_loop().create_task(work, name="omni-inbox")
        if key is not None:
            self._storing[key] = task
        task.add_done_callback(partial(self._note_decided, key))
        return task

    def _note_decided(self, key: _Key | None, task: asyncio.Task[Verdict]) -> None:
        if key is not None:
            del self._storing[key]
        if not task.cancelled():
            task.exception()  # looked at here, because the caller may have hung up

    async def _repeat_of(self, first: asyncio.Task[Verdict]) -> Verdict:
        """A repeat that came while the first one is being stored is safe when that one is."""
        await asyncio.shield(first)
        return Verdict(status="ignored", reason="repeat")

    async def _queue(self, instance: InstanceConfig, message: InboundMessage, received_ns: int) -> Verdict:
        record = self._new_record(message, received_ns)
        if not await self._store(record):
            return Verdict(status="ignored", reason="repeat")
        trace = self._tracer.open_turn(
            message, is_streaming=instance.streaming_enabled, received_ns=received_ns, trace_id=record.trace_id
        )
        self._queues.put(Turn(instance=instance, message=message, trace=trace, record=record))
        return Verdict(status="success", trace_id=trace.trace_id)

    async def _record(
        self, instance: InstanceConfig, message: InboundMessage, received_ns: int, *, reason: str
    ) -> Verdict:
        """Put a message that is not answered on record, closed and with its reason."""
        record = structs.replace(self._new_record(message, received_ns), state="done", message=None)
        if not await self._store(record):
            return Verdict(status="ignored", reason="repeat")
        trace = self._tracer.open_turn(message, is_streaming=False, received_ns=received_ns, trace_id=record.trace_id)
        if reason == "stop_word":
            trace.end_turn("completed")
        else:
            trace.end_turn(
                "error",
                error_message=f"not answered: {reason} ({self._told_of(message, reason)})",
                error_stage="webhook_received",
            )
        log.debug("message_not_answered", extra={"instance": instance.name, "reason": reason})
        return Verdict(status="ignored", reason=reason, trace_id=trace.trace_id)

    def _told_of(self, message: InboundMessage, reason: str) -> str:
        if reason == "too_old" and message.sent_at_s is not None:
            return f"{self._age_s(message.sent_at_s)} s"
        return message.message_type

    async def _store(self, record: InboxRecord) -> bool:
        """Make the message durable; False when another process has it already. Raises InboxFull when that cannot be done."""
        try:
            is_new = await self._ledger.put(PutInbound(record))
        except StoreError as exc:
            raise InboxFull("the message cannot be stored now; deliver it again later", retryable=True) from exc
        self._seen.add(record.instance_name, record.message_id)
        return is_new

    def _new_record(self, message: InboundMessage, received_ns: int) -> InboxRecord:
        waited_ns = self._clock.mono_ns() - received_ns
        return InboxRecord(
            instance_name=message.instance_name,
            message_id=message.message_id,
            chat_key=message.chat_key,
            trace_id=str(uuid4()),
            received_at=wall_datetime(self._clock.wall_ns()) - timedelta(microseconds=waited_ns // 1_000),
            # The webhook itself stands in the trace; it may hold media, which the ledger need not carry.
            message=structs.replace(message, raw={}),
        )

    def _age_s(self, sent_at_s: int) -> int:
        return self._clock.wall_ns() // NS_PER_S - sent_at_s
