"""The agent of the fault runs: streams what the plan says and keeps the books of what it was asked and of every byte it wrote.

It speaks the newest generation's wire format and has no faults of its own; whatever is missing later was lost behind it.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.faults.plans import Mark, TurnPlan, asked_mark

from omni.clock import NS_PER_S, Clock
from omni.sandbox.hive_wire import RunWire, Usage, encode
from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.pacing import Pace, TaskOwner
from omni.sandbox.responses import StreamedResponse, Write

AGENT_ID = "marked"
AGENT_KEY = "agent-key-of-these-tests"


class Asked(Struct):
    """One request and how far its answer got. Times are monotonic nanoseconds; ``written_ns`` has one per chunk written to the socket."""

    mark: Mark
    asked_ns: int
    written_ns: list[int] = []
    ended_ns: int | None = None
    is_cancelled: bool = False


class MarkedAgent:
    """Answers every question by its mark. ``asked`` holds all requests in the order they came; ``on_event`` is called for each event."""

    def __init__(self, *, clock: Clock, tasks: TaskOwner, on_event: Callable[[], None]) -> None:
        self.asked: list[Asked] = []
        self.unknown: list[str] = []
        self._plans: dict[Mark, TurnPlan] = {}
        self._running: dict[str, Asked] = {}
        self._clock = clock
        self._tasks = tasks
        self._pace = Pace()
        self._on_event = on_event

    def learn(self, plans: tuple[TurnPlan, ...]) -> None:
        """Know the answers to more questions."""
        self._plans |= {plan.mark: plan for plan in plans}

    def app(self) -> Starlette:
        """The HTTP face."""
        runs = f"/agents/{AGENT_ID}/runs"
        return Starlette(
            routes=[
                Route(runs, self._run, methods=["POST"]),
                Route(runs + "/{run_id}/cancel", self._cancel, methods=["POST"]),
            ]
        )

    async def _run(self, request: Request) -> Response:
        async with request.form() as form:
            message, session_id = str(form.get("message", "")), str(form.get("session_id", ""))
        mark = asked_mark(message)
        plan = None if mark is None else self._plans.get(mark)
        if plan is None:
            self.unknown.append(message)
            return JSONResponse({"detail": "nobody wrote this"}, 422)
        asked = Asked(mark=plan.mark, asked_ns=self._clock.mono_ns())
        self.asked.append(asked)
        run_id = f"run-{len(self.asked)}-{plan.mark.message_id}"
        self._running[run_id] = asked
        self._on_event()
        wire = RunWire(dialect="agno3", kind="agent", runner_id=AGENT_ID, run_id=run_id, session_id=session_id)
        return StreamedResponse(lambda write: self._stream(wire, plan, asked, write), tasks=self._tasks)

    async def _cancel(self, request: Request) -> Response:
        found = self._running.get(request.path_params["run_id"])
        if found is not None:
            found.is_cancelled = True
        return JSONResponse({})

    async def _stream(self, wire: RunWire, plan: TurnPlan, asked: Asked, write: Write) -> bool:
        now_s = self._clock.wall_ns() // NS_PER_S
        await write(encode(wire.started(now_s), dialect="agno3"))
        for piece, gap_s in zip(plan.pieces, plan.gaps_s, strict=True):
            await self._pace.pause(gap_s)
            if asked.is_cancelled:
                await write(encode(wire.cancelled(now_s, ""), dialect="agno3"))
                return True
            await write(encode(wire.content(now_s, piece), dialect="agno3"))
            asked.written_ns.append(self._clock.mono_ns())
            self._on_event()
        usage = Usage(input_tokens=1, output_tokens=len(plan.pieces), first_token_s=0.0, duration_s=0.0)
        for event in (*wire.content_completed(now_s), wire.completed(now_s, plan.text, usage)):
            await write(encode(event, dialect="agno3"))
        asked.ended_ns = self._clock.mono_ns()
        return True


@asynccontextmanager
async def serve_agent(agent: MarkedAgent) -> AsyncIterator[str]:
    """Serve the agent while the block runs; yields its address."""
    async with serve_on_loopback(agent.app()) as url:
        yield url
