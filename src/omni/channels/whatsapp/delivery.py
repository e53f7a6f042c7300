"""Delivers growing answers: text goes in chunk by chunk, WhatsApp messages come out in order, each with its outcome.

Between the streamer and the channel. ``answer_delivery`` is one answer, ``lanes`` one chat; this is all of them. Each chat has its own
lane; a chat that is stuck holds up nobody else. A failure for good ends the answer it belongs to, and only that one. Every
message is in the ledger before it is sent, and a process that comes after one that died goes on where that one stopped.

What if a queue is full? It cannot be: a lane takes what it is given. What waits in it is text of an answer that is held in memory
anyway, once more, plus some 1,000 bytes per message of up to ``message_max_chars``; the number of answers is bounded by
the inbox, their length by the agent. Dropping or refusing a message would lose text for no memory worth having.

Runs on event loops only. Each loop has its own lanes: a script may run several, one after the other or in threads.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from functools import partial
from uuid import uuid4
from weakref import WeakKeyDictionary

from omni.channels.whatsapp.addresses import conversation_key, parse_address
from omni.channels.whatsapp.answer_delivery import AnswerDelivery, OnOutcome
from omni.channels.whatsapp.lanes import Lane, LaneParts
from omni.channels.whatsapp.outbox import AnswerIdentity, Outbox
from omni.channels.whatsapp.patience import Backoff, Jitter, Sleep
from omni.channels.whatsapp.reconcile import Reconciler
from omni.channels.whatsapp.sending import Sending
from omni.clock import Clock
from omni.faults import fault_facts
from omni.model import InstanceConfig, MessageOutcome, SentEcho
from omni.ports import Channel, Ledger
from omni.records import OutboxRecord
from omni.settings import Settings

__all__ = ["AnswerDelivery", "Delivery", "OnOutcome"]

log = logging.getLogger(__name__)

_Lanes = dict[tuple[str, str], Lane]


class Delivery:
    """All lanes of one channel. Close it with ``aclose``.

    Without a ``ledger`` nothing is written down. ``jitter`` gives the chance in the pauses between attempts.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        clock: Clock,
        settings: Settings,
        ledger: Ledger | None = None,
        sleep: Sleep = asyncio.sleep,
        jitter: Jitter = random.random,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._outbox = Outbox(ledger, clock=clock, settings=settings, sleep=sleep)
        backoff = Backoff(settings, jitter=jitter)
        self._reconciler = Reconciler(clock=clock, settings=settings, sleep=sleep, backoff=backoff)
        self._lane_parts = LaneParts(
            channel=channel,
            outbox=self._outbox,
            reconciler=self._reconciler,
            backoff=backoff,
            clock=clock,
            settings=settings,
            sleep=sleep,
        )
        self._lanes_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lanes] = WeakKeyDictionary()
        self._num_unsettled = 0
        self._settled = asyncio.Event()
        self._settled.set()
        self._is_closing = False

    @property
    def active_lanes(self) -> int:
        """How many chats have messages waiting, being sent, or the spacing behind one still running."""
        return sum(len(lanes) for lanes in self._lanes_by_loop.values())

    @property
    def unsettled_messages(self) -> int:
        """How many messages have no final outcome yet."""
        return self._num_unsettled

    @property
    def num_unledgered(self) -> int:
        """How many messages were sent before the ledger had them, because it did not take them in time."""
        return self._outbox.num_unledgered

    def open_answer(
        self,
        instance: InstanceConfig,
        recipient: str,
        *,
        chat_key: str,
        on_outcome: OnOutcome,
        answer_id: str | None = None,
        trace_id: str | None = None,
    ) -> AnswerDelivery:
        """Begin the delivery of one answer. ``on_outcome`` is called on the event loop, once per message, with its final outcome.

        ``answer_id`` names the answer in the ledger and must be no other answer's; without one it gets one.
        """
        return self.resume_answer(
            instance,
            recipient,
            chat_key=chat_key,
            on_outcome=on_outcome,
            records=(),
            answer_id=answer_id or trace_id or uuid4().hex,
            trace_id=trace_id,
        )

    def open_text(
        self, instance: InstanceConfig, recipient: str, *, answer_id: str | None = None, trace_id: str | None = None
    ) -> AnswerDelivery:
        """Begin the delivery of a text that answers nobody, in the lane of the recipient's chat."""
        address = parse_address(recipient)
        return self.open_answer(
            instance,
            recipient,
            chat_key=recipient if address is None else conversation_key(address, [address]),
            on_outcome=lambda _: None,
            answer_id=answer_id,
            trace_id=trace_id,
        )

    def resume_answer(
        self,
        instance: InstanceConfig,
        recipient: str,
        *,
        chat_key: str,
        on_outcome: OnOutcome,
        records: Sequence[OutboxRecord],
        answer_id: str,
        trace_id: str | None,
    ) -> AnswerDelivery:
        """Go on with an answer an earlier process began, from all its ``records``.

        Messages with a final state stay as they are and are not told to ``on_outcome``. One that was being sent is looked for before
        anything else of the answer is sent; those that were queued are sent, unless the answer had been given up. Feed it from its
        ``resumes_at`` on, or all that was received with ``feed_rest``; it may take a notice; then finish it as any other.
        """
        for record in records:
            if record.key_id is not None:
                self._reconciler.note_key(record.instance_name, record.key_id)
        return AnswerDelivery(
            instance,
            recipient,
            identity=AnswerIdentity(
                answer_id=answer_id, trace_id=trace_id, instance_name=instance.name, chat_key=chat_key
            ),
            records=records,
            outbox=self._outbox,
            clock=self._clock,
            max_chars=self._settings.message_max_chars,
            put=partial(self._put, (instance.name, chat_key)),
            on_outcome=partial(self._note_outcome, on_outcome),
        )

    def note_echo(self, echo: SentEcho) -> None:
        """Take the channel's own word that it sent a message. Call it on the event loop that sends; never blocks, never raises."""
        self._reconciler.note_echo(echo)

    async def aclose(self, deadline_s: float) -> None:
        """Take no more messages, give the waiting ones ``deadline_s`` seconds, then cancel; the rest are settled as not sent."""
        self._is_closing = True
        try:
            await asyncio.wait_for(self._settled.wait(), deadline_s)
        except TimeoutError:
            log.warning("delivery_cut_off", extra={"messages": self._num_unsettled})
        lanes = self._lanes_by_loop.pop(asyncio.get_running_loop(), {})
        await asyncio.gather(*(lane.stop() for lane in list(lanes.values())))

    def _put(self, key: tuple[str, str], sending: Sending) -> None:
        self._num_unsettled += 1
        self._settled.clear()
        if self._is_closing:
            sending.answer.settle(sending.cut_off(at_ns=self._clock.mono_ns()))
            return
        if sending.answer.given_up_because is not None and not sending.is_started:
            sending.answer.settle(sending.not_sent(sending.answer.given_up_because))
            return
        lanes = self._lanes_by_loop.setdefault(asyncio.get_running_loop(), {})
        lane = lanes.get(key)
        if lane is None:
            lane = lanes[key] = Lane(self._lane_parts, on_idle=partial(lanes.pop, key, None))
        lane.put(sending)

    def _note_outcome(self, on_outcome: OnOutcome, outcome: MessageOutcome) -> None:
        self._num_unsettled -= 1
        if self._num_unsettled == 0:
            self._settled.set()
        try:
            on_outcome(outcome)
        except Exception as exc:  # noqa: BLE001 - a listener's fault must not stop the chat's next message
            log.error("outcome_listener_raised", extra=fault_facts(exc))  # noqa: TRY400 - a traceback could hold text
