"""Delivers growing answers: text goes in chunk by chunk, WhatsApp messages come out in order, each with its outcome.

Between the streamer and the channel. ``AnswerDelivery.feed`` never waits: it splits, queues and returns, so that reading the agent is
never held up by sending. Each chat has its own lane; a chat that is stuck holds up nobody else. A failure for good ends the
answer it belongs to, and only that one.

What if a queue is full? It cannot be: a lane takes what it is given. What waits in it is text of an answer that is held in memory
anyway, once more, plus some 400 bytes per message of up to ``message_max_chars``; the number of answers is bounded by
the inbox, their length by the agent. Dropping or refusing a message would lose text for no memory worth having.

Runs on event loops only. Each loop has its own lanes: a script may run several, one after the other or in threads.
"""

import asyncio
import logging
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

from omni.channels.whatsapp.addresses import conversation_key, parse_address
from omni.channels.whatsapp.lanes import STOPPED, Lane, Sending, Sleep
from omni.channels.whatsapp.splitter import ParagraphSplitter, Piece
from omni.clock import Clock
from omni.errors import DeliveryError
from omni.faults import fault_facts
from omni.model import InstanceConfig, MessageOutcome, OutboundMessage
from omni.ports import Channel
from omni.settings import Settings

log = logging.getLogger(__name__)

OnOutcome = Callable[[MessageOutcome], None]

_Lanes = dict[tuple[str, str], Lane]


class Delivery:
    """All lanes of one channel. Close it with ``aclose``."""

    def __init__(self, channel: Channel, *, clock: Clock, settings: Settings, sleep: Sleep = asyncio.sleep) -> None:
        self._channel = channel
        self._clock = clock
        self._settings = settings
        self._sleep = sleep
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

    def open_answer(
        self, instance: InstanceConfig, recipient: str, *, chat_key: str, on_outcome: OnOutcome
    ) -> "AnswerDelivery":
        """Begin the delivery of one answer. ``on_outcome`` is called on the event loop, once per message, with its final outcome."""
        return AnswerDelivery(
            instance,
            recipient,
            clock=self._clock,
            max_chars=self._settings.message_max_chars,
            put=partial(self._put, (instance.name, chat_key)),
            on_outcome=partial(self._note_outcome, on_outcome),
        )

    def open_text(self, instance: InstanceConfig, recipient: str) -> "AnswerDelivery":
        """Begin the delivery of a text that answers nobody, in the lane of the recipient's chat."""
        address = parse_address(recipient)
        chat_key = recipient if address is None else conversation_key(address, [address])
        return self.open_answer(instance, recipient, chat_key=chat_key, on_outcome=lambda _: None)

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
        reason = STOPPED if self._is_closing else sending.answer.given_up_because
        if reason is not None:
            sending.answer.settle(sending.not_sent(reason))
            return
        lanes = self._lanes_by_loop.setdefault(asyncio.get_running_loop(), {})
        lane = lanes.get(key)
        if lane is None:
            lane = lanes[key] = Lane(
                self._channel,
                clock=self._clock,
                settings=self._settings,
                sleep=self._sleep,
                on_idle=partial(lanes.pop, key, None),
            )
        lane.put(sending)

    def _note_outcome(self, on_outcome: OnOutcome, outcome: MessageOutcome) -> None:
        self._num_unsettled -= 1
        if self._num_unsettled == 0:
            self._settled.set()
        try:
            on_outcome(outcome)
        except Exception as exc:  # noqa: BLE001 - a listener's fault must not stop the chat's next message
            log.error("outcome_listener_raised", extra=fault_facts(exc))  # noqa: TRY400 - a traceback could hold text


class AnswerDelivery:
    """The delivery of one answer, made by ``Delivery.open_answer``. Feed it, finish it, then wait until it is done.

    Outcomes come in the order of the messages; those of an answer that is given up come at once, before that of a message
    which is still being sent.
    """

    def __init__(
        self,
        instance: InstanceConfig,
        recipient: str,
        *,
        clock: Clock,
        max_chars: int,
        put: Callable[[Sending], None],
        on_outcome: OnOutcome,
    ) -> None:
        self.instance = instance
        self.given_up_because: str | None = None
        self._recipient = recipient
        self._clock = clock
        self._put = put
        self._on_outcome = on_outcome
        self._splitter = ParagraphSplitter(max_chars, splits_paragraphs=instance.enable_auto_split)
        self._chunks = _ChunkMap()
        self._unsettled: dict[int, Sending] = {}
        self._outcomes: list[MessageOutcome | None] = []
        self._is_text_over = False
        self._is_finished = False
        self._done = asyncio.Event()

    @property
    def num_messages(self) -> int:
        """How many messages the answer has so far, notices included."""
        return len(self._outcomes)

    def feed(self, text: str, chunk_index: int) -> None:
        """Take the next chunk; queues the messages it completes. Never blocks. DeliveryError once the text is over."""
        if self._is_text_over:
            raise DeliveryError("The answer's text is over; no chunk can follow.")
        self._chunks.add(len(text), chunk_index)
        for piece in self._splitter.feed(text):
            self._queue_piece(piece)

    def notice(self, text: str) -> None:
        """Queue one message behind the answer's text, which is over with it. DeliveryError once the answer is finished."""
        if self._is_finished:
            raise DeliveryError("The answer is finished; no notice can follow.")
        self._flush()
        end = self._chunks.total_chars
        self._queue(OutboundMessage(index=self.num_messages, recipient=self._recipient, text=text, start=end, end=end))

    def finish(self) -> None:
        """Queue what is left of the text; nothing can follow. Safe to call again."""
        self._flush()
        self._is_finished = True
        self._note_done()

    def abandon(self) -> None:
        """Give the answer up: messages not yet started become not_sent, those still to come as well. Finish it nevertheless."""
        self._give_up("the answer was abandoned")

    def snapshot(self) -> tuple[MessageOutcome, ...]:
        """What is known of each message now, in order; one that has no final outcome yet is ``pending``."""
        return tuple(
            outcome if outcome is not None else self._unsettled[index].pending()
            for index, outcome in enumerate(self._outcomes)
        )

    async def wait_done(self) -> tuple[MessageOutcome, ...]:
        """All outcomes in order, once the answer is finished and each message has one. Waits for ever if it is never finished."""
        await self._done.wait()
        return tuple(outcome for outcome in self._outcomes if outcome is not None)

    def settle(self, outcome: MessageOutcome) -> None:
        """Take a message's final outcome from its lane. Never raises."""
        index = outcome.message.index
        self._outcomes[index] = outcome
        self._unsettled.pop(index, None)
        self._on_outcome(outcome)
        if outcome.status == "failed" and outcome.error_kind != "ambiguous":
            # An ambiguous message may well have arrived; a reader with the rest of the answer is better off than one without.
            self._give_up("an earlier message of the answer failed")
        self._note_done()

    def _flush(self) -> None:
        if not self._is_text_over:
            self._is_text_over = True
            for piece in self._splitter.finish():
                self._queue_piece(piece)

    def _queue_piece(self, piece: Piece) -> None:
        first_chunk, last_chunk = self._chunks.chunks_of(piece.start, piece.end)
        self._queue(
            OutboundMessage(
                index=self.num_messages,
                recipient=self._recipient,
                text=piece.text,
                start=piece.start,
                end=piece.end,
                first_chunk=first_chunk,
                last_chunk=last_chunk,
            )
        )

    def _queue(self, message: OutboundMessage) -> None:
        sending = Sending(answer=self, message=message, queued_ns=self._clock.mono_ns())
        self._outcomes.append(None)
        self._unsettled[message.index] = sending
        self._put(sending)

    def _give_up(self, reason: str) -> None:
        if self.given_up_because is not None:
            return
        self.given_up_because = reason
        for sending in [each for each in self._unsettled.values() if not each.is_started]:
            self.settle(sending.not_sent(reason))

    def _note_done(self) -> None:
        if self._is_finished and not self._unsettled:
            self._done.set()


class _ChunkMap:
    """Which chunk each character of the answer came from: 16 bytes per chunk that has any."""

    def __init__(self) -> None:
        self._ends = array("q")
        self._indexes = array("q")
        self.total_chars = 0

    def add(self, num_chars: int, chunk_index: int) -> None:
        if num_chars:
            self.total_chars += num_chars
            self._ends.append(self.total_chars)
            self._indexes.append(chunk_index)

    def chunks_of(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last chunk that have a part in the characters ``[start, end)``."""
        return self._indexes[bisect_right(self._ends, start)], self._indexes[bisect_left(self._ends, end)]
