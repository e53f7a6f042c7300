"""The delivery of one answer: its growing text becomes numbered messages, each of which comes to one final outcome.

Between the streamer, who feeds it, and the chat's lane, which sends. ``feed`` never waits. The ranges of an answer's messages follow
each other without gap or overlap; what is not sent is a message of its own with the outcome ``not_sent``, so that the text an agent
wrote is always the text that was sent and the text that was explicitly not.

An answer that an earlier process began is resumed from its records in the ledger: ``resumes_at`` is the code point behind the last of
them, and there its splitter starts.
"""

import asyncio
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from omni.channels.whatsapp.outbox import AnswerIdentity, Outbox
from omni.channels.whatsapp.sending import Sending, recorded_outcome, resumed_sending
from omni.channels.whatsapp.splitter import ParagraphSplitter, Piece
from omni.clock import Clock, take_anchor
from omni.errors import DeliveryError
from omni.model import InstanceConfig, MessageOutcome, OutboundMessage
from omni.records import OutboxRecord

OnOutcome = Callable[[MessageOutcome], None]

_ABANDONED = "the answer was abandoned"
_FAILED_BEFORE = "an earlier message of the answer failed"


class ReceivedChunk(Protocol):
    """A chunk of the answer as it was received."""

    @property
    def index(self) -> int:
        """Its number in the answer."""
        ...

    @property
    def text(self) -> str:
        """Its text."""
        ...


class AnswerDelivery:
    """The delivery of one answer, made by ``Delivery``. Feed it, finish it, then wait until it is done.

    Outcomes come in the order of the messages; those of an answer that is given up come at once, before that of a message
    which is still being sent. With ``records`` it continues what an earlier process began; their outcomes are known from the
    start and are not told again.
    """

    def __init__(
        self,
        instance: InstanceConfig,
        recipient: str,
        *,
        identity: AnswerIdentity,
        records: Sequence[OutboxRecord],
        outbox: Outbox,
        clock: Clock,
        max_chars: int,
        put: Callable[[Sending], None],
        on_outcome: OnOutcome,
    ) -> None:
        self.instance = instance
        self.given_up_because: str | None = None
        self.resumes_at = max((record.end for record in records), default=0)
        self._recipient = recipient
        self._identity = identity
        self._outbox = outbox
        self._clock = clock
        self._put = put
        self._on_outcome = on_outcome
        self._splitter = ParagraphSplitter(max_chars, splits_paragraphs=instance.enable_auto_split)
        self._chunks = _ChunkMap(start=self.resumes_at)
        self._unsettled: dict[int, Sending] = {}
        self._outcomes: dict[int, MessageOutcome | None] = {}
        self._is_text_over = any(record.is_notice for record in records)
        self._is_finished = False
        self._done = asyncio.Event()
        self._resume(records)

    @property
    def num_messages(self) -> int:
        """How many messages the answer has so far, notices and those of an earlier process included."""
        return max(self._outcomes, default=-1) + 1

    def feed(self, text: str, chunk_index: int) -> None:
        """Take the next chunk; queues the messages it completes. Never blocks. DeliveryError once the text is over.

        The first text a resumed answer is fed must begin at ``resumes_at``.
        """
        if self._is_text_over:
            raise DeliveryError("The answer's text is over; no chunk can follow.")
        self._chunks.add(len(text), chunk_index)
        for piece in self._splitter.feed(text):
            self._queue_piece(piece)

    def feed_rest(self, text: str, chunks: Iterable[ReceivedChunk] = ()) -> None:
        """Take the whole text of a resumed answer as far as it was received; only what lies behind ``resumes_at`` is fed.

        ``chunks`` are those the text came in, from the first on. Never blocks. A text that was over stays as it is.
        """
        if self._is_text_over:
            return
        at, last_index = 0, 0
        for chunk in chunks:
            start, at, last_index = at, at + len(chunk.text), chunk.index
            self._chunks.add(at - max(start, self.resumes_at), chunk.index)
        self._chunks.add(len(text) - max(at, self.resumes_at), last_index)
        for piece in self._splitter.feed(text[self.resumes_at :]):
            self._queue_piece(piece)

    def notice(self, text: str) -> None:
        """Queue one message behind the answer's text, which is over with it. DeliveryError once the answer is finished."""
        if self._is_finished:
            raise DeliveryError("The answer is finished; no notice can follow.")
        self._flush()
        end = self._chunks.total_chars
        message = OutboundMessage(index=self.num_messages, recipient=self._recipient, text=text, start=end, end=end)
        self._queue(message, is_notice=True)

    def finish(self) -> None:
        """Queue what is left of the text; nothing can follow. Safe to call again."""
        self._flush()
        self._is_finished = True
        self._note_done()

    def abandon(self) -> None:
        """Give the answer up: messages not yet started become not_sent, those still to come as well. Finish it nevertheless."""
        self._give_up(_ABANDONED)

    def snapshot(self) -> tuple[MessageOutcome, ...]:
        """What is known of each message now, in order; one that has no final outcome yet is ``pending``."""
        return tuple(
            outcome if outcome is not None else self._unsettled[index].pending()
            for index, outcome in self._outcomes.items()
        )

    async def wait_done(self) -> tuple[MessageOutcome, ...]:
        """All outcomes in order, once the answer is finished and each message has one. Waits for ever if it is never finished."""
        await self._done.wait()
        return tuple(outcome for outcome in self._outcomes.values() if outcome is not None)

    def settle(self, outcome: MessageOutcome) -> None:
        """Take a message's final outcome from its lane. Never raises."""
        index = outcome.message.index
        sending = self._unsettled.pop(index)
        sending.is_settled = True
        self._outcomes[index] = outcome
        self._outbox.close(sending, outcome)
        self._on_outcome(outcome)
        if outcome.status == "failed" and outcome.error_kind != "ambiguous":
            # An ambiguous message may well have arrived; a reader with the rest of the answer is better off than one without.
            self._give_up(_FAILED_BEFORE)
        self._note_done()

    def _resume(self, records: Sequence[OutboxRecord]) -> None:
        anchor = take_anchor(self._clock)
        in_order = sorted(records, key=lambda record: record.index)
        for record in in_order:
            self._outcomes[record.index] = recorded_outcome(record, anchor=anchor)
            if record.state == "not_sent":
                self.given_up_because = record.error or _ABANDONED
            elif record.state == "failed" and record.error_kind != "ambiguous":
                self.given_up_because = _FAILED_BEFORE
        for record in in_order:
            if self._outcomes[record.index] is None:
                self._start(resumed_sending(self, record, anchor=anchor))

    def _flush(self) -> None:
        if not self._is_text_over:
            self._is_text_over = True
            for piece in self._splitter.finish():
                self._queue_piece(piece)

    def _queue_piece(self, piece: Piece) -> None:
        start, end = self.resumes_at + piece.start, self.resumes_at + piece.end
        first_chunk, last_chunk = self._chunks.chunks_of(start, end)
        message = OutboundMessage(
            index=self.num_messages,
            recipient=self._recipient,
            text=piece.text,
            start=start,
            end=end,
            first_chunk=first_chunk,
            last_chunk=last_chunk,
        )
        self._queue(message, is_notice=False)

    def _queue(self, message: OutboundMessage, *, is_notice: bool) -> None:
        record = self._outbox.open(self._identity, message, is_notice=is_notice)
        self._outcomes[message.index] = None
        self._start(Sending(answer=self, message=message, record=record, queued_ns=self._clock.mono_ns()))

    def _start(self, sending: Sending) -> None:
        self._unsettled[sending.message.index] = sending
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
    """Which chunk each character of the answer came from, from ``start`` on: 16 bytes per chunk that has any."""

    def __init__(self, *, start: int) -> None:
        self._ends = array("q")
        self._indexes = array("q")
        self.total_chars = start

    def add(self, num_chars: int, chunk_index: int) -> None:
        if num_chars > 0:
            self.total_chars += num_chars
            self._ends.append(self.total_chars)
            self._indexes.append(chunk_index)

    def chunks_of(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last chunk that have a part in the characters ``[start, end)``."""
        return self._indexes[bisect_right(self._ends, start)], self._indexes[bisect_left(self._ends, end)]
