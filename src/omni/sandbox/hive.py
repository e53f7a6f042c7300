"""A simulated Automagik Hive: agents and teams that answer from scripts, in the wire format of three server generations.

It checks keys, forms and paths as the real servers do, each generation in its own way, streams or answers whole, keeps the session it
is given, and records every run with its times. There is no model and no memory behind it.
"""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from omni.clock import Clock, wall_datetime
from omni.sandbox import hive_bodies as bodies
from omni.sandbox.hive_run import HiveRun, Player
from omni.sandbox.hive_wire import Dialect, RunnerKind, RunWire, encode
from omni.sandbox.pacing import Pace, TaskOwner
from omni.sandbox.responses import StreamedResponse, Write
from omni.sandbox.script_texts import choose_script, scripts
from omni.sandbox.scripts import Script

DEFAULT_AGENT = "assistant"
DEFAULT_TEAM = "squad"

_TRUE_WORDS = frozenset({"true", "1", "yes", "on", "t", "y"})
_FALSE_WORDS = frozenset({"false", "0", "no", "off", "f", "n"})


class SimulatedHive:
    """The agent server. Use on one event loop; ``app`` gives its HTTP face in one dialect.

    Known agents and teams are ``assistant``, ``squad``, every script's name, and what ``add_script`` adds. An empty ``api_key`` leaves
    the server open. ``runs`` holds every run of every dialect in the order the requests came.
    """

    def __init__(self, *, api_key: str, tasks: TaskOwner, pace: Pace, clock: Clock) -> None:
        self.api_key = api_key
        self.runs: list[HiveRun] = []
        self._scripts_by_id: dict[str, Script] = {}
        self._tasks = tasks
        self._pace = pace
        self._clock = clock
        self._started_at = wall_datetime(clock.wall_ns()).isoformat().replace("+00:00", "Z")

    def add_script(self, runner_id: str, script: Script) -> None:
        """Have the agent or team of this id always answer with one script."""
        self._scripts_by_id[runner_id] = script

    def app(self, dialect: Dialect) -> Starlette:
        """The ASGI application that speaks one dialect; the oldest lives under ``/playground`` and cannot cancel."""
        prefix = "/playground" if dialect == "agno1" else ""
        routes: list[Route] = []
        kinds: tuple[RunnerKind, RunnerKind] = ("agent", "team")
        for kind in kinds:
            path = f"{prefix}/{kind}s/{{runner_id}}/runs"
            routes.append(Route(path, self._guarded(dialect, self._runner(dialect, kind)), methods=["POST"]))
            if dialect == "agno3":
                routes.append(Route(path, self._guarded(dialect, _list_runs), methods=["GET"]))
            if dialect != "agno1":
                cancel = self._guarded(dialect, self._canceller(dialect))
                routes.append(Route(path + "/{run_id}/cancel", cancel, methods=["POST"]))
        if dialect != "agno1":
            routes.append(Route("/health", self._health))
        return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _wrong_method})

    def _guarded(
        self, dialect: Dialect, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            return self._refusal(dialect, request) or await answer(request)

        return respond

    def _refusal(self, dialect: Dialect, request: Request) -> Response | None:
        if not self.api_key:
            return None
        if dialect == "agno1":
            if request.headers.get("x-api-key") == self.api_key:
                return None
            headers = {"www-authenticate": "x-api-key"}
            return JSONResponse({"detail": "Invalid or missing x-api-key header"}, 401, headers=headers)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if dialect == "agno3" and scheme and not token:  # the newest generation also takes a key without a scheme
            scheme, token = "bearer", scheme
        if not scheme or (dialect == "agno20" and scheme.lower() != "bearer"):
            return JSONResponse({"detail": "Authorization header required"}, 401)
        if scheme.lower() != "bearer" or token != self.api_key:
            return JSONResponse({"detail": "Invalid authentication token"}, 401)
        return None

    def _runner(self, dialect: Dialect, kind: RunnerKind) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            async with request.form() as form:
                fields = {name: value for name, value in form.items() if isinstance(value, str)}
            problem = _form_problem(fields, dialect=dialect)
            if problem is not None:
                return JSONResponse(problem, 422)
            runner_id = request.path_params["runner_id"]
            if not self._knows(runner_id):
                return JSONResponse({"detail": f"{kind.capitalize()} not found"}, 404)
            return await self._answer(self._open_run(dialect, kind, runner_id, fields))

        return run

    def _open_run(self, dialect: Dialect, kind: RunnerKind, runner_id: str, fields: dict[str, str]) -> HiveRun:
        message = fields.get("message", "")
        wire = RunWire(
            dialect=dialect,
            kind=kind,
            runner_id=runner_id,
            run_id=str(uuid.uuid4()),
            session_id=fields.get("session_id") or str(uuid.uuid4()),
        )
        run = HiveRun(
            wire,
            script=self._scripts_by_id.get(runner_id) or choose_script(message, runner_id=runner_id),
            message=message,
            user_id=fields.get("user_id"),
            stream=fields.get("stream", "true").lower() in _TRUE_WORDS,
        )
        self.runs.append(run)
        return run

    async def _answer(self, run: HiveRun) -> Response:
        player = Player(run, clock=self._clock, pace=self._pace, tasks=self._tasks)
        if run.is_streamed:
            return StreamedResponse(lambda write: _stream(player, run, write), tasks=self._tasks)
        produced: list[Any] = []

        async def collect(event: Any) -> None:
            produced.append(event)

        await player.play(collect)
        if run.ending == "garbage":
            return Response(produced[0], media_type="text/html")
        if run.ending == "cut" or (run.ending == "error" and run.wire.dialect != "agno3"):
            return PlainTextResponse("Internal Server Error", 500)
        return JSONResponse(bodies.run_body(player.record()))

    def _canceller(self, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        async def cancel(request: Request) -> Response:
            run_id = request.path_params["run_id"]
            found = [run for run in self.runs if run.wire.run_id == run_id and run.ending is None]
            for run in found:
                run.is_cancelled = True
            if not found and dialect == "agno20":
                return JSONResponse({"detail": "Failed to cancel run"}, 500)
            return JSONResponse({})

        return cancel

    async def _health(self, request: Request) -> Response:
        del request
        return JSONResponse({"status": "ok", "instantiated_at": self._started_at})

    def _knows(self, runner_id: str) -> bool:
        known = (DEFAULT_AGENT, DEFAULT_TEAM, *self._scripts_by_id, *scripts("en"))
        return runner_id in known


async def _stream(player: Player, run: HiveRun, write: Write) -> bool:
    """Write a run's bytes; False when the connection is to be dropped instead of ended."""

    async def emit(event: dict[str, Any] | bytes) -> None:
        await write(event if isinstance(event, bytes) else encode(event, dialect=run.wire.dialect))

    await player.play(emit)
    return run.ending != "cut"


def _form_problem(fields: dict[str, str], *, dialect: Dialect) -> dict[str, Any] | None:
    """What is wrong with a form; only the newest generation refuses an empty message."""
    if "message" not in fields or (dialect == "agno3" and not fields["message"]):
        return bodies.missing_field("body", "message")
    flag = fields.get("stream", "true")
    if flag.lower() not in _TRUE_WORDS | _FALSE_WORDS:
        return bodies.bad_bool("stream", flag)
    return None


async def _list_runs(request: Request) -> Response:
    """Nothing is kept to be listed; what a caller meets who sends GET by mistake is the complaint about the query."""
    if "session_id" not in request.query_params:
        return JSONResponse(bodies.missing_field("query", "session_id"), 422)
    return JSONResponse([])


async def _not_found(request: Request, error: Exception) -> Response:
    del request, error
    return JSONResponse(bodies.NOT_FOUND, 404)


async def _wrong_method(request: Request, error: Exception) -> Response:
    del request, error
    return JSONResponse({"detail": "Method Not Allowed"}, 405)
