"""Answers questions: keeps the stories of a process, stops those somebody wants stopped, and finishes those whose caller is gone.

Reading the stream never waits for sending: text goes to the delivery's splitter and lane without an await, and the lane has its own
task. The trace is closed only when the agent is done and every message has its outcome. Whatever goes wrong ends as a known ending, with
the text received so far delivered and kept, one polite notice for the user, and stage and cause for the operator (``answer_story``).
A caller who is cancelled gets its CancelledError at once; the story behind it is finished in a task of its own.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from omni.channels.whatsapp.delivery import AnswerDelivery, Delivery
from omni.channels.whatsapp.presence import TypingIndicator
from omni.clock import Clock
from omni.errors import SettingsError
from omni.faults import fault_facts
from omni.gateway.agent_run import AgentRun, Halt, Question, Sleep
from omni.gateway.answer_story import CUT_OFF, Addressee, AnswerStory, NoteSent, StoryParts
from omni.gateway.notices import Language, NoticeBook
from omni.gateway.run_readers import AgentEnd
from omni.gateway.turn import Turn
from omni.model import Ending
from omni.ports import AgentBackend, TraceSubscriber
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.summary import headline, streaming_summary
from omni.tracing.trace_context import TraceContext

__all__ = ["AnswerStreamer", "Question"]

log = logging.getLogger(__name__)


class AnswerStreamer:
    """Answers questions. One object serves all turns of a process; close it with ``aclose``.

    ``online`` keeps the HTTP clients open while a story is finished whose caller is gone. ``note_sent`` is told of each message that
    became known by a key, ``subscribers`` of each turn that ended.
    """

    def __init__(
        self,
        *,
        delivery: Delivery,
        typing: TypingIndicator,
        clock: Clock,
        language: Language,
        online: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
        note_sent: NoteSent | None = None,
        subscribers: Sequence[TraceSubscriber] = (),
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._notices = NoticeBook(language)
        self._subscribers = subscribers
        self._parts = StoryParts(
            delivery=delivery,
            typing=typing,
            notices=self._notices,
            online=online,
            close=self._close,
            note_sent=note_sent,
        )
        self._stories: dict[asyncio.Task[bool], AnswerStory] = {}
        self._num_by_ending: dict[str, int] = {}
        self._cut_off_ending: Ending = "cancelled"

    async def answer(
        self,
        question: Question,
        agent: AgentBackend,
        trace: TraceContext,
        *,
        on_delivering: Callable[[], None] | None = None,
        on_closed: Callable[[Ending], None] | None = None,
    ) -> bool:
        """Answer one question and close its trace; True when the whole answer was accepted by the channel.

        Never raises for what the agent or the channel did. Cancelling it stops the agent; what it said so far and a notice are
        delivered behind the caller's back, and the trace is closed as ``cancelled``, or as ``interrupted`` when the process stops.
        ``on_delivering`` is called when the agent is done and all messages are queued, ``on_closed`` when nothing is left to do.
        """
        trace.log_processing_start()
        trace.update_session_info(session_name=question.request.session_id)
        is_streaming = question.request.stream
        if is_streaming:
            StreamingTraceContext.upgrade(trace)

        def open_run(answer: AnswerDelivery) -> AgentRun:
            return AgentRun(question, agent, trace, answer, clock=self._clock, sleep=self._sleep)

        story = AnswerStory(
            Addressee(
                instance=question.instance,
                recipient=question.recipient,
                chat_key=question.chat_key,
                agent_id=question.request.agent_id,
            ),
            trace,
            self._parts,
            open_run=open_run,
            has_chunks=is_streaming,
            on_delivering=on_delivering,
            on_closed=on_closed,
        )
        return await self._tell(story)

    async def refuse(
        self, turn: Turn, error: SettingsError, *, on_closed: Callable[[Ending], None] | None = None
    ) -> bool:
        """Close a turn that cannot be asked because its instance is not set up for it; the user gets one notice."""
        message = turn.message
        story = AnswerStory(
            Addressee(instance=turn.instance, recipient=message.reply_to, chat_key=message.chat_key, agent_id=None),
            turn.trace,
            self._parts,
            refusal=AgentEnd(ending="error", error_message=str(error), error_stage=error.stage),
            on_delivering=turn.on_delivering,
            on_closed=on_closed,
        )
        return await self._tell(story)

    async def ask_whole(self, question: Question, agent: AgentBackend, trace: TraceContext) -> str:
        """The agent's whole answer, or the polite notice when there is none, for callers who deliver it themselves.

        After an answer the trace stays open until the caller logs the sending; otherwise it is closed with the run's ending.
        """
        trace.update_session_info(session_name=question.request.session_id)
        run = AgentRun(question, agent, trace, None, clock=self._clock, sleep=self._sleep)
        try:
            await run.read()
            end = await run.settle()
        except asyncio.CancelledError:
            ending = self._cut_off_ending
            run.halt(Halt(ending=ending, sentence=CUT_OFF, notice_as="interrupted"))
            run.put_on_record()
            end = AgentEnd(ending=ending, error_message=CUT_OFF, error_stage=ending)
            self._close(trace, end, question.instance.name)
            raise
        if end.ending != "completed":
            self._close(trace, end, question.instance.name)
        elif end.has_text:
            return end.text
        return self._notices.notice_for(question.instance, end.ending, has_text=False) or ""

    def stop_chat(self, instance_name: str, chat_key: str) -> bool:
        """The user wants no more: stop the answers being written in a chat; False when there is none.

        The run is stopped at its server, what was not sent is dropped and on record as not sent, one notice follows, and the trace ends
        as ``cancelled``. Asked again while that goes on it changes nothing. Sees the running loop's answers only.
        """
        return self._stop(lambda story: _chat_of(story) == (instance_name, chat_key))

    def stop_turn(self, trace_id: str) -> bool:
        """The same for the answer of one trace."""
        return self._stop(lambda story: story.trace.trace_id == trace_id)

    def note_stopping(self) -> None:
        """The process is about to stop: turns cut off from here on were interrupted, not cancelled by anybody."""
        self._cut_off_ending = "interrupted"

    async def aclose(self, deadline_s: float) -> None:
        """Cut off what the running loop still answers, let it be finished for ``deadline_s`` seconds, then give it up.

        Every trace is closed when this returns. To be called when nobody asks any more, and before the delivery is closed.
        """
        self.note_stopping()
        here = asyncio.get_running_loop()
        tasks = {task: story for task, story in list(self._stories.items()) if story.loop is here}
        if not tasks:
            return
        for story in tasks.values():
            story.cut_off(self._cut_off_ending)
        _, unfinished = await asyncio.wait(tasks, timeout=deadline_s)
        if unfinished:
            log.warning("answers_cut_off", extra={"num_answers": len(unfinished)})
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished)

    def get_streaming_analytics(self) -> dict[str, Any]:
        """What is running now, with its figures so far, and how many turns ended how since the process started."""
        streams = [
            {
                "trace_id": story.trace.trace_id,
                "instance_name": story.addressee.instance.name,
                "agent_id": story.addressee.agent_id,
                **streaming_summary(story.trace.timeline),
            }
            for story in list(self._stories.values())
            if story.is_open
        ]
        return {"active_streams": len(streams), "streams": streams, "ended": dict(self._num_by_ending)}

    async def _tell(self, story: AnswerStory) -> bool:
        task = story.loop.create_task(story.tell(), name="omni-answer")
        self._stories[task] = story
        task.add_done_callback(self._note_told)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            story.cut_off(self._cut_off_ending)
            raise

    def _note_told(self, task: asyncio.Task[bool]) -> None:
        story = self._stories.pop(task)
        fault = None if task.cancelled() else task.exception()
        if fault is None:
            story.give_up()  # a task that is cancelled before its first step does nothing at all
            return
        if story.is_cut_off:
            # Nobody is left to hear of it; it is an ERROR because a person should act.
            log.error("answer_failed", extra={"trace_id": story.trace.trace_id, **fault_facts(fault)})
        story.give_up(AgentEnd(ending="error", error_message=type(fault).__name__, error_stage="processing"))

    def _stop(self, is_meant: Callable[[AnswerStory], bool]) -> bool:
        here = asyncio.get_running_loop()
        stories = [story for story in list(self._stories.values()) if story.loop is here and is_meant(story)]
        were_open = [story.stop() for story in stories]
        return any(were_open)

    def _close(self, trace: TraceContext, end: AgentEnd, instance_name: str) -> None:
        trace.end_turn(end.ending, error_message=end.error_message, error_stage=end.error_stage)
        self._num_by_ending[end.ending] = self._num_by_ending.get(end.ending, 0) + 1
        timeline = trace.timeline
        for subscriber in self._subscribers:
            subscriber.turn_ended(timeline, instance_name=instance_name)
        log.info(
            "turn_ended",
            extra={
                "trace_id": trace.trace_id,
                "ending": end.ending,
                "error_stage": end.error_stage,
                "headline": headline(timeline),
                "turn_total_ms": timeline.turn_total_ms,
            },
        )


def _chat_of(story: AnswerStory) -> tuple[str, str]:
    return story.addressee.instance.name, story.addressee.chat_key
