"""The real Agno server of ``agno_server`` as a gateway meets it: behind a key, with memory, and with an answer that can be held.

Run it as a script: ``python tests/support/agno_gateway_server.py --key K``. It prints one line of JSON with its
port when it takes requests, and leaves with exit code 0 on SIGTERM. Agents are added:

``memory`` says in which session and with whom it talks, and how many of the user's messages came with them. ``gated`` stops after its first
paragraph until ``POST /release`` lets one answer go on; ``halfway`` stops in the middle of a sentence and ``silent`` before its first
word, both until they are left. ``careful`` wants a person's consent before it goes on. ``GET /watched`` tells which runs the server was
told to cancel, and how many models were left while they were working.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.os.settings import AgnoAPISettings
from agno.run.cancel import set_cancellation_manager
from agno.run.cancellation_management import InMemoryRunCancellationManager
from agno.tools import tool
from agno_server import ScriptedModel, build
from fastapi import FastAPI

_DELTA_S = 0.03


class RememberingModel(ScriptedModel):
    """Says what reached the server: the session, the user, and how much of their conversation."""

    async def ainvoke_stream(self, messages: list[Message], **rest: Any) -> AsyncIterator[ModelResponse]:
        run = rest["run_response"]
        num_questions = sum(message.role == "user" for message in messages)
        yield ModelResponse(content=f"session {run.session_id}, user {run.user_id}, ")
        yield ModelResponse(content=f"messages seen: {num_questions}")
        yield self.ending(calls_tool=False)


@dataclass
class GatedModel(ScriptedModel):
    """Waits at the gate between ``deltas`` and ``after``; each release lets one answer through."""

    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    num_left: int = 0

    async def ainvoke_stream(self, messages: list[Message], **rest: Any) -> AsyncIterator[ModelResponse]:
        for delta in self.deltas:
            yield ModelResponse(content=delta)
        try:
            await self.gate.acquire()
        except asyncio.CancelledError:
            self.num_left += 1
            raise
        for delta in self.after:
            yield ModelResponse(content=delta)
        yield self.ending(calls_tool=False)


class WatchedCancellations(InMemoryRunCancellationManager):
    """Agno's own, which also remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    async def acancel_run(self, run_id: str) -> bool:
        self.told.append(run_id)
        return await super().acancel_run(run_id)


@tool(requires_confirmation=True)
def delete_order(number: int) -> str:
    """Delete an order."""
    return f"order {number} deleted"


def build_app(key: str) -> FastAPI:
    """The server's application with the added agents, the gate's route and what is watched."""
    memory = Agent(
        id="memory",
        name="memory",
        model=RememberingModel(),
        db=InMemoryDb(),
        add_history_to_context=True,
        telemetry=False,
    )
    model = GatedModel(deltas=("The first ", "paragraph.\n\n"), after=("The second one ", "came later."))
    gated = Agent(id="gated", name="gated", model=model, telemetry=False)
    halfway_model = GatedModel(deltas=("The first paragraph.\n\n", "The second one, unfin"), after=("ished.",))
    halfway = Agent(id="halfway", name="halfway", model=halfway_model, telemetry=False)
    silent_model = GatedModel(after=("Too late.",))
    silent = Agent(id="silent", name="silent", model=silent_model, telemetry=False)
    careful_model = ScriptedModel(
        deltas=("I would delete ", "order 77."), tool_call=("delete_order", {"number": 77}), after=("Done.",)
    )
    careful = Agent(
        id="careful", name="careful", model=careful_model, tools=[delete_order], db=InMemoryDb(), telemetry=False
    )
    server = build(delta_s=_DELTA_S)
    server.agents = [*(server.agents or []), memory, gated, halfway, silent, careful]
    server.settings = AgnoAPISettings(os_security_key=key)
    app = server.get_app()

    cancellations = WatchedCancellations()
    set_cancellation_manager(cancellations)

    async def release() -> None:
        model.gate.release()

    async def watched() -> dict[str, Any]:
        num_left = halfway_model.num_left + silent_model.num_left
        return {"cancelled_runs": cancellations.told, "num_left": num_left}

    app.add_api_route("/watched", watched, methods=["GET"])
    app.add_api_route("/release", release, methods=["POST"], status_code=204)
    return app


class AnnouncingServer(uvicorn.Server):
    """Says on a file descriptor that it takes requests."""

    announce_to = 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        assert sockets is not None
        os.write(self.announce_to, json.dumps({"port": sockets[0].getsockname()[1]}).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key", required=True, help="what requests must carry as Authorization: Bearer")
    key = parser.parse_args().key
    # uvicorn stops in order on SIGTERM and raises it again afterwards: this is what it then meets.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Agno logs to standard output, where one line is expected: the log goes to standard error with everything else.
    announce_to = os.dup(1)
    os.dup2(2, 1)
    server = AnnouncingServer(uvicorn.Config(build_app(key), log_level="warning", access_log=False))
    server.announce_to = announce_to
    server.run(sockets=[socket.create_server(("127.0.0.1", 0))])


if __name__ == "__main__":
    main()
