"""Starts a real Agno AgentOS server with offline scripted models, for tests that want the real thing on the other side.

Run it as a script: ``python agno_server.py [--port N] [--delta-ms N]``. It listens on 127.0.0.1 and prints one line of JSON when it is ready:
``{"port": 40123, "pid": 4711, "agno": "3.1.10"}``. End it by that pid. Everything above the model is Agno's own code: agent loop, team
delegation, routes, server-sent events. No network is used and telemetry is off.

Agents are ``text``, ``tool`` (calls a local tool, then answers) and ``error`` (its provider fails after three deltas); the team ``team`` asks
its member and then answers itself.
"""

import argparse
import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

os.environ["AGNO_TELEMETRY"] = "false"

import uvicorn
from agno.agent import Agent
from agno.exceptions import ModelProviderError
from agno.metrics import MessageMetrics
from agno.models.base import Model
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.os import AgentOS
from agno.team import Team
from agno_script import ERROR_MESSAGE, TEXT_DELTAS, get_stock


@dataclass
class ScriptedModel(Model):
    """Says ``deltas``; then calls a tool and, once its result is there, says ``after``; or fails with ``error``."""

    id: str = "scripted"
    name: str = "Scripted"
    provider: str = "Offline"
    delta_s: float = 0.03
    deltas: tuple[str, ...] = ()
    tool_call: tuple[str, dict[str, Any]] | None = None
    after: tuple[str, ...] = ()
    error: str | None = None
    _calls: int = field(default=0, repr=False)

    def plan(self, messages: list[Message]) -> tuple[tuple[str, ...], bool]:
        """What to say next, and whether a tool call follows: the script's second half once a tool has answered."""
        is_answered = messages[-1].role == "tool"
        return (self.after, False) if is_answered else (self.deltas, self.tool_call is not None)

    def ending(self, *, calls_tool: bool) -> ModelResponse:
        """The last delta: the tool call, if any, and the tokens."""
        made = ModelResponse(response_usage=MessageMetrics(input_tokens=11, output_tokens=7, total_tokens=18))
        if calls_tool and self.tool_call is not None:
            self._calls += 1
            name, arguments = self.tool_call
            function = {"name": name, "arguments": json.dumps(arguments)}
            made.tool_calls = [{"id": f"call_{self._calls}", "type": "function", "function": function}]
        return made

    async def ainvoke_stream(self, messages: list[Message], **rest: Any) -> AsyncIterator[ModelResponse]:
        deltas, calls_tool = self.plan(messages)
        for delta in deltas:
            await asyncio.sleep(self.delta_s)
            yield ModelResponse(content=delta)
        if self.error is not None:
            raise ModelProviderError(self.error, model_name=self.name, model_id=self.id)
        yield self.ending(calls_tool=calls_tool)

    async def ainvoke(self, messages: list[Message], **rest: Any) -> ModelResponse:
        await asyncio.sleep(self.delta_s)
        if self.error is not None:
            raise ModelProviderError(self.error, model_name=self.name, model_id=self.id)
        deltas, calls_tool = self.plan(messages)
        whole = self.ending(calls_tool=calls_tool)
        whole.content = "".join(deltas)
        return whole

    def invoke(self, *args: Any, **rest: Any) -> ModelResponse:
        raise NotImplementedError("The server only uses the asynchronous calls.")

    def invoke_stream(self, *args: Any, **rest: Any) -> Iterator[ModelResponse]:
        raise NotImplementedError("The server only uses the asynchronous calls.")

    def _parse_provider_response(self, response: Any, **rest: Any) -> ModelResponse:
        return response

    def _parse_provider_response_delta(self, response: Any) -> ModelResponse:
        return response


def build(*, delta_s: float) -> AgentOS:
    """The AgentOS with its three agents and its team."""
    text = ScriptedModel(delta_s=delta_s, deltas=TEXT_DELTAS)
    tool = ScriptedModel(
        delta_s=delta_s,
        deltas=("Vou ", "consultar", " o estoque… ", "🔎\n"),
        tool_call=("get_stock", {"sku": "SKU-42"}),
        after=("Temos ", "7 unidades", " de SKU-42 📦", "."),
    )
    error = ScriptedModel(delta_s=delta_s, deltas=("Começando ", "a responder", "… ⏳"), error=ERROR_MESSAGE)
    member = ScriptedModel(id="scripted-member", delta_s=delta_s, deltas=("[membro] prazo ", "é de 3 dias 🚚"))
    leader = ScriptedModel(
        delta_s=delta_s,
        deltas=("Um instante", "… "),
        tool_call=("delegate_task_to_member", {"member_id": "especialista", "task": "qual o prazo?"}),
        after=("O prazo ", "de entrega é ", "3 dias úteis 🚚", "."),
    )
    return AgentOS(
        agents=[
            Agent(id="text", name="text", model=text, telemetry=False),
            Agent(id="tool", name="tool", model=tool, tools=[get_stock], telemetry=False),
            Agent(id="error", name="error", model=error, telemetry=False),
        ],
        teams=[
            Team(
                id="team",
                name="team",
                model=leader,
                members=[Agent(id="especialista", name="especialista", role="entregas", model=member, telemetry=False)],
                telemetry=False,
            )
        ],
        telemetry=False,
    )


async def serve(*, port: int, delta_s: float) -> None:
    """Serve until a signal comes, and say on stdout when requests are taken."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(build(delta_s=delta_s).get_app(), log_level="warning")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with server.capture_signals():
        await server.startup(sockets=[listener])
        ready = {"port": listener.getsockname()[1], "pid": os.getpid(), "agno": version("agno")}
        print(json.dumps(ready), flush=True)  # noqa: T201
        await server.main_loop()
        await server.shutdown(sockets=[listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delta-ms", type=float, default=30)
    chosen = parser.parse_args()
    asyncio.run(serve(port=chosen.port, delta_s=chosen.delta_ms / 1000))
