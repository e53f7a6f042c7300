"""The story of one answer: the agent's part, the delivery's part, and one known ending, whatever happens to whom.

A story runs in a task of its own, so that it can be finished when the caller is gone: text received so far is delivered to its last
character, one polite notice follows, every message gets its outcome, and the trace is closed. Only a user who says stop gets no more of
the text: what was not sent then is on record as not sent. Told to give up, it does all of that at once and sends nothing more.

``hive_streamer`` keeps the stories of a process; ``agent_run`` is the agent's part.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Protocol

from msgspec import Struct, structs

from omni.channels.whatsapp.delivery import AnswerDelivery, Delivery
from omni.channels.whatsapp.presence import TypingIndicator, TypingSign
from omni.gateway.agent_run import AgentRun, Halt
from omni.gateway.notices import NoticeBook
from omni.gateway.run_readers import AgentEnd
from omni.model import Ending, InstanceConfig, MessageOutcome
from omni.tracing.trace_context import TraceContext

CUT_OFF = "the turn was cut off before it was done"
STOPPED_BY_USER = "the user asked to stop"
_UNDELIVERABLE = "a message of the answer could not be delivered, so the rest was not asked for"

_STOPPED = Halt(ending="cancelled", sentence=STOPPED_BY_USER, notice_as="cancelled")
_SEND_FAILED = Halt(ending="send_failed", sentence=_UNDELIVERABLE, notice_as="send_failed")


class Addressee(Struct, frozen=True, kw_only=True):
    """Where an answer goes: through which instance, to which address, in which conversation. ``agent_id`` names who gives it."""

    instance: InstanceConfig
    recipient: str
    chat_key: str
    agent_id: str | None


class NoteSent(Protocol):
    """Is told of a message of a turn that became known by a key, so that its receipts find the turn."""

    def __call__(self, instance_name: str, key_id: str, trace: TraceContext) -> None:
        """Take it; never blocks, never raises."""
        ...


class StoryParts(Struct, frozen=True, kw_only=True):
    """What a story works with. ``close`` puts the end on record; ``online`` keeps the HTTP clients open meanwhile."""

    delivery: Delivery
    typing: TypingIndicator
    notices: NoticeBook
    online: Callable[[], AbstractAsyncContextManager[object]]
    close: Callable[[TraceContext, AgentEnd, str], None]
    note_sent: NoteSent | None = None


class AnswerStory:
    """One turn's answer. Make it, then ``tell`` it in a task; everything else may be called at any time on the same loop.

    ``open_run`` makes the agent's part for the delivery it is to feed; without one ``refusal`` is the agent's end. ``on_delivering`` is
    called when the agent is done and all messages are queued, ``on_closed`` with the ending when nothing is left to do; each at most once.
    """

    def __init__(
        self,
        addressee: Addressee,
        trace: TraceContext,
        parts: StoryParts,
        *,
        open_run: Callable[[AnswerDelivery], AgentRun] | None = None,
        refusal: AgentEnd | None = None,
        has_chunks: bool = False,
        on_delivering: Callable[[], None] | None = None,
        on_closed: Callable[[Ending], None] | None = None,
    ) -> None:
        self.addressee = addressee
        self.trace = trace
        self.is_open = True
        self.loop = asyncio.get_running_loop()
        self._parts = parts
        self._refusal = refusal
        self._has_chunks = has_chunks
        self._on_delivering = on_delivering
        self._on_closed = on_closed
        self._sign: TypingSign | None = None
        self._answer = self._open_answer()
        self._farewell: AnswerDelivery | None = None
        self._run = None if open_run is None else open_run(self._answer)
        self._halted: asyncio.Future[None] = self.loop.create_future()
        self._cut_off_as: Ending | None = None
        self._is_stopped = False
        self._is_concluded = False
        trace.await_delivery()

    @property
    def is_cut_off(self) -> bool:
        """Whether its caller is gone."""
        return self._cut_off_as is not None

    async def tell(self) -> bool:
        """Ask, deliver, and close the trace; True when the whole answer was accepted by the channel."""
        try:
            async with self._parts.online(), self._typing() as self._sign:
                end = await self._agents_part()
                verdict = self._verdict(end, await self._outcomes())
                self._close(verdict)
        except asyncio.CancelledError:
            self.give_up()
            if self._run is not None:
                await self._run.aclose()
            raise
        return verdict.ending == "completed"

    def stop(self) -> bool:
        """The user wants no more of it: the run is stopped, what was not sent is dropped. False when it is over already."""
        if self.is_open and not self._is_stopped:
            self._is_stopped = True
            self._answer.abandon()
            self._halt(_STOPPED)
            if self._is_concluded:
                self._say_farewell()
        return self.is_open

    def cut_off(self, ending: Ending) -> None:
        """The caller is gone, or the process stops: the text received so far is finished, the run is not."""
        if self.is_open and self._cut_off_as is None:
            self._cut_off_as = ending
            self._halt(Halt(ending=ending, sentence=CUT_OFF, notice_as="interrupted"))

    def give_up(self, end: AgentEnd | None = None) -> None:
        """Close it now: what was not sent is on record as not sent, and the run as cut off. Safe to call again; never waits."""
        if not self.is_open:
            return
        if end is None:
            ending = self._cut_off_as or "cancelled"
            end = AgentEnd(ending=ending, error_message=CUT_OFF, error_stage=ending)
        for delivery in (self._answer, self._farewell):
            if delivery is not None:
                delivery.abandon()
                delivery.finish()
        if self._run is not None:
            self._run.halt(Halt(ending=end.ending, sentence=CUT_OFF, notice_as=end.ending))
            self._run.put_on_record()
        self._close(end)

    async def _agents_part(self) -> AgentEnd:
        if self._run is None:
            assert self._refusal is not None
            self._conclude(self._refusal.ending, has_text=False)
            return self._refusal
        await self._run.read_until(self._halted)
        halt, ending = self._run.halted_by, self._run.ending
        assert ending is not None
        # Before the server is told to stop: that may take seconds, and the user has waited long enough.
        self._conclude(ending if halt is None else halt.notice_as, has_text=self._run.has_text)
        return await self._run.settle()

    def _conclude(self, notice_as: Ending, *, has_text: bool) -> None:
        """Queue all that is left to say."""
        self._is_concluded = True
        if self._is_stopped:
            self._say_farewell()
        else:
            notice = self._parts.notices.notice_for(self.addressee.instance, notice_as, has_text=has_text)
            if notice is not None:
                self._answer.notice(notice)
            self._answer.finish()
        if self._on_delivering is not None:
            self._on_delivering()

    def _say_farewell(self) -> None:
        """One notice behind an answer that was abandoned, unless it has had its notice."""
        answer = self._answer
        answer.finish()
        if any(each.message.first_chunk is None and each.status != "not_sent" for each in answer.snapshot()):
            return
        notice = self._parts.notices.notice_for(self.addressee.instance, _STOPPED.notice_as, has_text=True)
        if notice is not None:
            self._farewell = self._open_answer(behind=answer)
            self._farewell.notice(notice)
            self._farewell.finish()

    async def _outcomes(self) -> tuple[MessageOutcome, ...]:
        outcomes = await self._answer.wait_done()
        if self._farewell is not None:
            await self._farewell.wait_done()
        return outcomes

    def _verdict(self, end: AgentEnd, outcomes: tuple[MessageOutcome, ...]) -> AgentEnd:
        if self._is_stopped:
            return AgentEnd(ending="cancelled", error_message=STOPPED_BY_USER, error_stage="cancelled")
        halt = None if self._run is None else self._run.halted_by
        if halt is not None and halt is not _SEND_FAILED:
            return AgentEnd(ending=halt.ending, error_message=halt.sentence, error_stage=halt.ending)
        return _with_delivery(end, outcomes)

    def _close(self, end: AgentEnd) -> None:
        self.is_open = False
        self._parts.close(self.trace, end, self.addressee.instance.name)
        if self._on_closed is not None:
            self._on_closed(end.ending)

    def _halt(self, cause: Halt) -> None:
        if not self._halted.done():
            if self._run is not None:
                self._run.halt(cause)
            self._halted.set_result(None)

    def _halt_if_undeliverable(self) -> None:
        if self._answer.given_up_because is not None:
            self._halt(_SEND_FAILED)

    def _typing(self) -> AbstractAsyncContextManager[TypingSign | None]:
        if self._run is None:
            return nullcontext()
        return self._parts.typing.shown(self.addressee.instance, self.addressee.recipient)

    def _open_answer(self, *, behind: AnswerDelivery | None = None) -> AnswerDelivery:
        """The turn's answer, or another one ``behind`` it, whose messages are counted on from there."""
        place, trace_id = self.addressee, self.trace.trace_id
        first_index = 0 if behind is None else behind.num_messages
        first_char = 0 if behind is None else max((each.message.end for each in behind.snapshot()), default=0)
        return self._parts.delivery.open_answer(
            place.instance,
            place.recipient,
            chat_key=place.chat_key,
            on_outcome=partial(self._note_outcome, first_index, first_char),
            answer_id=trace_id if behind is None else f"{trace_id}/stopped",
            trace_id=trace_id,
        )

    def _note_outcome(self, first_index: int, first_char: int, outcome: MessageOutcome) -> None:
        if self._sign is not None and outcome.status == "accepted":
            self._sign.note_message()
        if outcome.key_id is not None and self._parts.note_sent is not None:
            self._parts.note_sent(self.addressee.instance.name, outcome.key_id, self.trace)
        message = outcome.message
        is_notice = message.first_chunk is None
        message = structs.replace(
            message,
            index=first_index + message.index,
            start=first_char + message.start,
            end=first_char + message.end,
            first_chunk=message.first_chunk if self._has_chunks else None,
            last_chunk=message.last_chunk if self._has_chunks else None,
        )
        self.trace.log_message(structs.replace(outcome, message=message), is_notice=is_notice)
        if outcome.status == "failed" and not self._halted.done():
            # Whether the rest is given up with it is decided when this has returned.
            self.loop.call_soon(self._halt_if_undeliverable)


def _with_delivery(end: AgentEnd, outcomes: tuple[MessageOutcome, ...]) -> AgentEnd:
    """An answer of which not all went out is a failed one; an agent's own failure keeps its name."""
    failed = next((outcome for outcome in outcomes if outcome.status in ("failed", "not_sent")), None)
    if failed is None or end.ending not in ("completed", "send_failed"):
        return end
    return AgentEnd(
        ending="send_failed",
        error_message=failed.error or failed.error_kind or "a message was not sent",
        error_stage="evolution_send",
    )
