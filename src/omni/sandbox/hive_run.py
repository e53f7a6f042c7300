"""Plays one script as one run: events in a real server's order, at a lifelike pace.

The player says what the model server would say and records when it did, so that a test can compare a trace with the truth at its
source. Cancelling is cooperative, as in the real thing: it acts between two pieces of text.
"""

import uuid
from collections.abc import Awaitable, Callable
from typing import assert_never

from omni.clock import NS_PER_S, Clock
from omni.sandbox import scripts as step
from omni.sandbox.hive_bodies import RunRecord, RunStatus, run_body
from omni.sandbox.hive_wire import Json, RunWire, ToolUse, Usage
from omni.sandbox.pacing import Pace, TaskOwner
from omni.sandbox.scripts import Script, pieces

_RHYTHM = (0.6, 1.1, 0.8, 1.6, 0.9)
"""Models do not tick like clocks: pauses are stretched by these factors in turn, 1 on average."""

_CHARS_PER_TOKEN = 4

Emit = Callable[[Json | bytes], Awaitable[None]]
"""Where a player puts what the server sends: an event, or bytes that are none."""


class HiveRun:
    """One request and the run it caused. Times are monotonic nanoseconds, None until they happen.

    ``ending`` is ``completed``, ``error``, ``paused``, ``cancelled``, ``cut`` or ``garbage``; None while the run goes on, and for good when
    the client went away first.
    """

    def __init__(self, wire: RunWire, *, script: Script, message: str, user_id: str | None, stream: bool) -> None:
        self.wire = wire
        self.script = script
        self.message = message
        self.user_id = user_id
        self.is_streamed = stream
        self.is_cancelled = False
        self.text = ""
        self.error: str | None = None
        self.num_pieces = 0
        self.ending: str | None = None
        self.received_ns: int | None = None
        self.first_text_ns: int | None = None
        self.ended_ns: int | None = None
        self.tools: list[ToolUse] = []
        self.members: list[RunRecord] = []


class Player:
    """Turns a run's script into what the server sends."""

    def __init__(self, run: HiveRun, *, clock: Clock, pace: Pace, tasks: TaskOwner) -> None:
        self._run = run
        self._wire = run.wire
        self._clock = clock
        self._pace = pace
        self._tasks = tasks

    async def play(self, emit: Emit) -> None:
        """Send everything the server sends for this run, in order; the run's record is filled on the way.

        With the ending ``cut`` the connection is to be dropped afterwards.
        """
        run = self._run
        run.received_ns = self._clock.mono_ns()
        if not isinstance(run.script.steps[0], step.Garbage):
            await emit(self._wire.started(self._now_s()))
            await self._emit_all(emit, self._wire.model_started(self._now_s()))
            await self._pace.pause(run.script.first_token_s)
        for part in run.script.steps:
            await self._play_step(part, emit)
            if run.is_cancelled and run.ending is None:
                await self._cancel(emit)
            if run.ending is not None:
                break
        else:
            await self._complete(emit)
        run.ended_ns = self._clock.mono_ns()

    def record(self) -> RunRecord:
        """The run as a server without streaming would answer it."""
        run = self._run
        statuses: dict[str | None, RunStatus] = {"paused": "PAUSED", "error": "ERROR"}
        return RunRecord(
            wire=self._wire,
            status=statuses.get(run.ending, "COMPLETED"),
            message=run.message,
            content=run.error if run.error is not None else run.text,
            user_id=run.user_id,
            usage=self._usage(),
            created_at_s=self._now_s(),
            tools=tuple(run.tools),
            members=tuple(run.members),
        )

    async def _play_step(self, part: step.Step, emit: Emit) -> None:
        run = self._run
        match part:
            case step.Say():
                await self._say(part, emit)
            case step.Wait():
                await self._pace.pause(part.seconds)
            case step.Stall():
                await self._tasks.hold(part.seconds)
            case step.CallTool():
                await self._call_tool(part, emit)
            case step.AskMember():
                await self._ask_member(part, emit)
            case step.FailRun():
                run.ending, run.error = "error", part.message
                await emit(self._wire.error(self._now_s(), part.message))
            case step.AskPerson():
                await self._pause_for(part, emit)
            case step.DropConnection():
                run.ending = "cut"
            case step.Garbage():
                run.ending = "garbage"
                await emit(part.body)
            case _:
                assert_never(part)

    async def _say(self, part: step.Say, emit: Emit) -> None:
        run = self._run
        for piece in pieces(part.text, part.piece_chars):
            if run.is_cancelled:
                return
            if run.first_text_ns is None:
                run.first_text_ns = self._clock.mono_ns()
            run.text += piece
            run.num_pieces += 1
            await emit(self._wire.content(self._now_s(), piece))
            await self._pace.pause(part.pause_s * _RHYTHM[run.num_pieces % len(_RHYTHM)])

    async def _call_tool(self, part: step.CallTool, emit: Emit) -> None:
        called = self._tool(part.name, part.args)
        await self._emit_all(emit, self._wire.model_completed(self._now_s(), self._usage()))
        await emit(self._wire.tool_started(self._now_s(), called))
        await self._pace.pause(part.takes_s)
        await emit(self._finish_tool(called, result=part.result))
        await self._emit_all(emit, self._wire.model_started(self._now_s()))

    async def _ask_member(self, part: step.AskMember, emit: Emit) -> None:
        member = RunWire(
            dialect=self._wire.dialect,
            kind="agent",
            runner_id=part.member_id,
            run_id=str(uuid.uuid4()),
            session_id=self._wire.session_id,
            parent=self._wire.run_id,
        )
        called = self._tool(*_delegation(self._wire, part))
        await self._emit_all(emit, self._wire.model_completed(self._now_s(), self._usage()))
        await emit(self._wire.tool_started(self._now_s(), called))
        script = Script(name=part.member_id, title=part.member_id, steps=(step.Say(part.text),), first_token_s=0.3)
        run = HiveRun(member, script=script, message=part.task, user_id=self._run.user_id, stream=True)
        inner = Player(run, clock=self._clock, pace=self._pace, tasks=self._tasks)
        await inner.play(emit)
        self._run.members.append(inner.record())
        await emit(self._finish_tool(called, result=part.text, child_run_id=member.run_id))
        await self._emit_all(emit, self._wire.model_started(self._now_s()))

    async def _pause_for(self, part: step.AskPerson, emit: Emit) -> None:
        run = self._run
        tool = self._tool(part.tool_name, part.args, needs_confirmation=True)
        run.ending = "paused"
        run.tools.append(tool)
        await self._emit_all(emit, self._wire.model_completed(self._now_s(), self._usage()))
        await self._emit_all(emit, self._wire.content_completed(self._now_s()))
        await emit(self._wire.paused(self._now_s(), run.text, tool, requirement_id=str(uuid.uuid4())))

    async def _complete(self, emit: Emit) -> None:
        run = self._run
        members = [run_body(member) for member in run.members] if self._wire.kind == "team" else None
        await self._emit_all(emit, self._wire.model_completed(self._now_s(), self._usage()))
        await self._emit_all(emit, self._wire.content_completed(self._now_s()))
        run.ending = "completed"
        await emit(self._wire.completed(self._now_s(), run.text, self._usage(), members=members))

    async def _cancel(self, emit: Emit) -> None:
        run = self._run
        run.ending = "cancelled"
        await emit(self._wire.cancelled(self._now_s(), run.text))
        if self._wire.dialect == "agno3":  # seen there: a completion follows the cancellation
            await emit(self._wire.completed(self._now_s(), run.text, self._usage()))

    async def _emit_all(self, emit: Emit, events: list[Json]) -> None:
        for event in events:
            await emit(event)

    def _tool(self, name: str, args: Json, *, needs_confirmation: bool = False) -> ToolUse:
        return ToolUse(
            call_id=f"call_{uuid.uuid4().hex[:8]}",
            name=name,
            args=args,
            started_s=self._wall_s(),
            needs_confirmation=needs_confirmation,
        )

    def _finish_tool(self, called: ToolUse, *, result: str, child_run_id: str | None = None) -> Json:
        done = ToolUse(
            call_id=called.call_id,
            name=called.name,
            args=called.args,
            started_s=called.started_s,
            ended_s=self._wall_s(),
            result=result,
            child_run_id=child_run_id,
        )
        self._run.tools.append(done)
        return self._wire.tool_completed(self._now_s(), done)

    def _usage(self) -> Usage:
        run = self._run
        start_ns = run.received_ns or 0
        first_ns = run.first_text_ns
        return Usage(
            input_tokens=len(run.message) // _CHARS_PER_TOKEN + 1,
            output_tokens=run.num_pieces,
            first_token_s=None if first_ns is None else (first_ns - start_ns) / NS_PER_S,
            duration_s=(self._clock.mono_ns() - start_ns) / NS_PER_S,
        )

    def _now_s(self) -> int:
        return self._clock.wall_ns() // NS_PER_S

    def _wall_s(self) -> float:
        return self._clock.wall_ns() / NS_PER_S


def _delegation(wire: RunWire, part: step.AskMember) -> tuple[str, Json]:
    if wire.dialect == "agno3":
        return "delegate_task_to_member", {"member_id": part.member_id, "task": part.task}
    name = "transfer_task_to_member" if wire.dialect == "agno1" else "delegate_task_to_member"
    return name, {"member_id": part.member_id, "task_description": part.task, "expected_output": "text"}
