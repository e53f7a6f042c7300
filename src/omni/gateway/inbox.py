"""The inbox: decides which webhooks become turns, and keeps each chat's turns in order.

It stands between the webhook, which must answer within milliseconds, and the agent, which takes seconds: ``take`` only parses, looks
up, opens the trace and queues. One chat's turns are answered one after another, because an agent server does not see a run of the same
session that is still going on; chats never wait for each other. Repeats are recognised by (instance, message id) for 24 hours.

Full is an answer: beyond ``inbox_max_waiting`` queued messages ``take`` raises InboxFull, the webhook says 503 and Evolution comes again.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from omni.channels.whatsapp.webhook import each_message, parse_webhook
from omni.clock import NS_PER_S, Clock
from omni.errors import InboxFull
from omni.faults import fault_facts
from omni.gateway.starting_line import StartingLine
from omni.gateway.turn import Turn, Verdict
from omni.model import Ignored, InstanceConfig
from omni.settings import Settings
from omni.tracing.service import Tracer

log = logging.getLogger(__name__)

REPEAT_WINDOW_S = 24 * 3600
"""How long a message id is remembered: Evolution's retries end after half an hour, its own backlog may come much later."""
# Ids remembered at most; at 100 bytes each this is about 20 MB.
_MAX_REMEMBERED = 200_000


class Inbox:
    """Takes webhooks and hands turns to ``answer``, one at a time per chat. Used on the event loop only."""

    def __init__(
        self, answer: Callable[[Turn], Awaitable[object]], *, tracer: Tracer, clock: Clock, settings: Settings
    ) -> None:
        self._answer = answer
        self._tracer = tracer
        self._clock = clock
        self._settings = settings
        self._seen = _SeenMessages(clock)
        self._waiting: dict[tuple[str, str], deque[Turn]] = {}
        self._lanes: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._num_waiting = 0
        self._starting_line = StartingLine()
        self._is_closing = False

    @property
    def num_waiting(self) -> int:
        """Turns queued and not yet begun."""
        return self._num_waiting

    @property
    def num_running(self) -> int:
        """Chats with a turn being answered."""
        return len(self._lanes)

    def remember(self, message_ids: Iterable[tuple[str, str]]) -> None:
        """Recognise these (instance, message id) pairs as repeats: what was answered before a restart."""
        for instance_name, message_id in message_ids:
            self._seen.add(instance_name, message_id)

    def take(self, instance: InstanceConfig, body: Mapping[str, Any]) -> Verdict:
        """Decide about one webhook. Never waits. Raises WebhookMalformed and InboxFull.

        Of several messages in one webhook each is decided about; the verdict is that of the first that becomes a turn. When one
        of them finds the inbox full, Evolution brings all again, and those taken are repeats then.
        """
        received_ns = self._clock.mono_ns()
        verdicts = [self._take_message(instance, one, received_ns) for one in each_message(body)]
        return next((verdict for verdict in verdicts if verdict.status == "success"), verdicts[0])

    async def aclose(self, *, deadline_s: float) -> None:
        """Take nothing new, let running turns finish until the deadline, then cut them off; each is on record."""
        self._is_closing = True
        for turns in self._waiting.values():
            for turn in turns:
                turn.trace.end_turn(
                    "interrupted", error_message="Omni stopped before this turn began", error_stage="interrupted"
                )
            turns.clear()
        self._num_waiting = 0
        lanes = list(self._lanes.values())
        if not lanes:
            return
        _, unfinished = await asyncio.wait(lanes, timeout=deadline_s)
        for lane in unfinished:
            lane.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)

    def _take_message(self, instance: InstanceConfig, body: Mapping[str, Any], received_ns: int) -> Verdict:
        answers_groups = instance.answers_groups or self._settings.answer_groups
        parsed = parse_webhook(body, instance_name=instance.name, answers_groups=answers_groups)
        if isinstance(parsed, Ignored):
            return self._ignore(instance, parsed, received_ns)
        if self._seen.has(instance.name, parsed.message_id):
            return Verdict(status="ignored", reason="repeat")
        if self._is_closing or self._num_waiting >= self._settings.inbox_max_waiting:
            raise InboxFull("too many messages are waiting; deliver this one again later", retryable=True)
        self._seen.add(instance.name, parsed.message_id)
        trace = self._tracer.open_turn(parsed, is_streaming=instance.streaming_enabled, received_ns=received_ns)
        self._queue(Turn(instance=instance, message=parsed, trace=trace))
        return Verdict(status="success", trace_id=trace.trace_id)

    def _ignore(self, instance: InstanceConfig, ignored: Ignored, received_ns: int) -> Verdict:
        log.debug(
            "webhook_ignored", extra={"instance": instance.name, "reason": ignored.reason, "event": ignored.event}
        )
        message = ignored.message
        if message is None:
            return Verdict(status="ignored", reason=ignored.reason)
        if self._seen.has(instance.name, message.message_id):
            return Verdict(status="ignored", reason="repeat")
        # A person wrote something that is not answered: the operator should find it.
        self._seen.add(instance.name, message.message_id)
        trace = self._tracer.open_turn(message, is_streaming=False, received_ns=received_ns)
        trace.end_turn(
            "error",
            error_message=f"not answered: {ignored.reason} ({message.message_type})",
            error_stage="webhook_received",
        )
        return Verdict(status="ignored", reason=ignored.reason, trace_id=trace.trace_id)

    def _queue(self, turn: Turn) -> None:
        key = (turn.instance.name, turn.message.chat_key)
        self._waiting.setdefault(key, deque()).append(turn)
        self._num_waiting += 1
        if key not in self._lanes:
            self._lanes[key] = asyncio.get_running_loop().create_task(self._run_lane(key), name="omni-chat")

    async def _run_lane(self, key: tuple[str, str]) -> None:
        turns = self._waiting[key]
        try:
            await self._starting_line.wait()
            while turns:
                turn = turns.popleft()
                self._num_waiting -= 1
                await self._run_turn(turn)
        finally:
            del self._lanes[key]
            del self._waiting[key]

    async def _run_turn(self, turn: Turn) -> None:
        try:
            await self._answer(turn)
        except Exception as exc:  # noqa: BLE001 - around one message's task (docs/decisions/0006-broad-excepts.md)
            # A bug of ours must cost one turn, not the chat; it is an ERROR because a person should act.
            facts = {"trace_id": turn.trace.trace_id, **fault_facts(exc)}
            log.error("turn_failed", extra=facts)  # noqa: TRY400 - a traceback could hold text
            turn.trace.end_turn("error", error_message=type(exc).__name__, error_stage="processing")


class _SeenMessages:
    """Message ids of the last day, oldest first; bounded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen_ns: OrderedDict[tuple[str, str], int] = OrderedDict()

    def has(self, instance_name: str, message_id: str) -> bool:
        seen_ns = self._seen_ns.get((instance_name, message_id))
        return seen_ns is not None and self._clock.mono_ns() - seen_ns < REPEAT_WINDOW_S * NS_PER_S

    def add(self, instance_name: str, message_id: str) -> None:
        now_ns = self._clock.mono_ns()
        self._seen_ns[instance_name, message_id] = now_ns
        self._seen_ns.move_to_end((instance_name, message_id))
        while self._seen_ns:
            oldest, seen_ns = next(iter(self._seen_ns.items()))
            if len(self._seen_ns) <= _MAX_REMEMBERED and now_ns - seen_ns < REPEAT_WINDOW_S * NS_PER_S:
                break
            del self._seen_ns[oldest]
