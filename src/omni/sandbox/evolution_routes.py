"""The HTTP face of the simulated Evolution: checks in the real server's order, then behaviour from ``SimulatedEvolution``.

The order is part of the contract: an unknown instance is a 404 even without a key, a wrong key a 401, then the schema, then the
text and the number. ``delay`` of a call is always held in full, whatever the sandbox's speed, because the caller asked for it.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omni.sandbox import evolution_wire as wire
from omni.sandbox.evolution import SimulatedEvolution, SimulatedInstance, new_row_id
from omni.sandbox.evolution_records import Fault, HttpCall, PresenceCall, ReadCall
from omni.sandbox.responses import CutResponse, read_json, while_connected
from omni.sandbox.webhooks import WebhookTarget

SEND_LATENCY_S = 0.06
"""Lifelike time the real service needs to hand a text to WhatsApp."""

Answer = Callable[[SimulatedInstance, Any, Request], Awaitable[Response]]


def evolution_app(evolution: SimulatedEvolution) -> Starlette:
    """The ASGI application of one simulated server."""
    face = _Face(evolution)
    return Starlette(
        routes=[
            face.route("/message/sendText/{instance}", face.send_text),
            face.route("/chat/sendPresence/{instance}", face.send_presence),
            face.route("/chat/markMessageAsRead/{instance}", face.mark_as_read),
            face.route("/chat/findMessages/{instance}", face.find_messages),
            face.route("/instance/connectionState/{instance}", face.connection_state, method="GET"),
            face.route("/instance/connect/{instance}", face.connection_state, method="GET"),
            face.route("/webhook/set/{instance}", face.set_webhook),
            face.route("/webhook/find/{instance}", face.find_webhook, method="GET"),
            Route("/{rest:path}", _unknown_route, methods=["GET", "POST", "PUT", "DELETE"]),
        ]
    )


class _Face:
    def __init__(self, evolution: SimulatedEvolution) -> None:
        self._evolution = evolution

    def route(self, path: str, answer: Answer, *, method: str = "POST") -> Route:
        async def respond(request: Request) -> Response:
            received_ns = self._evolution.clock.mono_ns()
            body = await read_json(request)
            response = await self._answer_guarded(answer, body, request)
            self._evolution.calls.append(
                HttpCall(
                    method=request.method,
                    path=path.replace("{instance}", request.path_params["instance"]),
                    body=body,
                    status_code=response.status_code,
                    received_ns=received_ns,
                    answered_ns=self._evolution.clock.mono_ns(),
                )
            )
            return response

        return Route(path, respond, methods=[method])

    async def _answer_guarded(self, answer: Answer, body: Any, request: Request) -> Response:
        name = request.path_params["instance"]
        instance = self._evolution.instances.get(name)
        if instance is None:
            return _error(404, [f'The "{name}" instance does not exist'])
        if request.headers.get("apikey") not in (self._evolution.api_key, instance.token):
            return _error(401, "Unauthorized")
        return await answer(instance, body, request)

    async def send_text(self, instance: SimulatedInstance, body: Any, request: Request) -> Response:
        evolution = self._evolution
        received_ns = evolution.clock.mono_ns()
        problems = wire.schema_problems(body, {"number": str, "text": str})
        if problems:
            return _error(400, [problems])
        if not body["text"].strip():
            return _error(400, ["Text is required"])
        if body["number"] in evolution.unregistered_numbers:
            return JSONResponse(wire.not_on_whatsapp(body["number"]), 400)
        fault = evolution.next_fault("sendText")
        if fault is not None and not fault.is_sent:
            return await self._fail(fault, instance, body, request)
        await evolution.tasks.hold((body.get("delay") or 0) / 1000)
        await evolution.pace.pause(SEND_LATENCY_S)
        is_kept = fault is None or fault.is_kept
        message = evolution.accept_text(instance, body, received_ns=received_ns, is_kept=is_kept)
        key_id = message["key"]["id"]
        if fault is not None:
            await evolution.plan_receipts(instance.name, key_id)
            return await self._fail(fault, instance, body, request)
        # Planned only once the answer is written, so that no receipt overtakes it.
        return JSONResponse(message, 201, background=BackgroundTask(evolution.plan_receipts, instance.name, key_id))

    async def send_presence(self, instance: SimulatedInstance, body: Any, request: Request) -> Response:
        evolution = self._evolution
        problems = wire.schema_problems(body, {"number": str, "presence": str, "delay": int})
        if problems:
            return _error(400, [problems])
        fault = evolution.next_fault("sendPresence")
        if fault is not None:
            return await self._fail(fault, instance, body, request)
        call = PresenceCall(
            instance_name=instance.name,
            number=body["number"],
            state=body["presence"],
            delay_ms=body["delay"],
            received_ns=evolution.clock.mono_ns(),
        )
        evolution.presences.append(call)
        # A caller that hangs up does not end the pulse: the real server goes on with it.
        await while_connected(request, evolution.tasks.spawn(evolution.pulse(call), name="presence"))
        return JSONResponse({"presence": call.state}, 201)

    async def mark_as_read(self, instance: SimulatedInstance, body: Any, request: Request) -> Response:
        problems = wire.schema_problems(body, {"readMessages": list})
        if problems:
            return _error(400, [problems])
        fault = self._evolution.next_fault("markMessageAsRead")
        if fault is not None:
            return await self._fail(fault, instance, body, request)
        for key in body["readMessages"]:
            read = ReadCall(
                instance_name=instance.name,
                message_id=key["id"],
                remote_jid=key["remoteJid"],
                is_effective=not key["remoteJid"].endswith("@lid"),
                received_ns=self._evolution.clock.mono_ns(),
            )
            self._evolution.mark_as_read(read)
        return JSONResponse({"message": "Read messages", "read": "success"}, 201)

    async def find_messages(self, instance: SimulatedInstance, body: Any, request: Request) -> Response:
        fault = self._evolution.next_fault("findMessages")
        if fault is not None:
            return await self._fail(fault, instance, body, request)
        return JSONResponse(instance.rows.find(body))

    async def connection_state(self, instance: SimulatedInstance, body: Any, request: Request) -> Response:
        del body, request
        return JSONResponse({"instance": {"instanceName": instance.name, "state": instance.state}})

    async def set_webhook(self, instance: SimulatedInstance, body: Any, request: Request) -> Response:
        del request
        problems = wire.schema_problems(body, {"webhook": dict})
        if problems:
            return _error(400, [problems])
        wanted = body["webhook"]
        if "events" not in wanted:
            return _error(500, "Cannot read properties of undefined (reading 'length')")
        for position, event in enumerate(wanted["events"]):
            if event not in wire.WEBHOOK_EVENTS:
                known = ",".join(wire.WEBHOOK_EVENTS)
                return _error(400, [[f"webhook.events[{position}] is not one of enum values: {known}"]])
        instance.target = WebhookTarget(
            url=wanted["url"],
            headers=wanted.get("headers") or {},
            events=tuple(wanted["events"]),
            by_events=bool(wanted.get("byEvents")),
            is_enabled=bool(wanted.get("enabled", True)),
        )
        now = self._evolution.date_time()
        earlier = instance.webhook_row or {"id": new_row_id(), "createdAt": now}
        instance.webhook_row = {
            "id": earlier["id"],
            "url": instance.target.url,
            "headers": dict(instance.target.headers),
            "enabled": instance.target.is_enabled,
            "events": wanted["events"] or list(wire.WEBHOOK_EVENTS),
            "webhookByEvents": instance.target.by_events,
            "webhookBase64": bool(wanted.get("base64")),
            "createdAt": earlier["createdAt"],
            "updatedAt": now,
            "instanceId": instance.id,
        }
        return JSONResponse(instance.webhook_row, 201)

    async def find_webhook(self, instance: SimulatedInstance, body: Any, request: Request) -> Response:
        del body, request
        return JSONResponse(instance.webhook_row)

    async def _fail(self, fault: Fault, instance: SimulatedInstance, body: Any, request: Request) -> Response:
        if fault.status_code is None:
            end = self._evolution.tasks.spawn(self._evolution.tasks.until_stopped(), name="call without an answer")
            await while_connected(request, end)
            end.cancel()
            return Response(status_code=504)
        if fault.is_cut:
            return CutResponse(b'{"key":{', fault.status_code, media_type="application/json")
        if fault.raw is not None:
            return Response(fault.raw, fault.status_code, headers=fault.headers)
        return JSONResponse(fault.body(instance.name, body), fault.status_code)


async def _unknown_route(request: Request) -> Response:
    return _error(404, [f"Cannot {request.method} /{request.path_params['rest']}"])


def _error(status: int, message: Any) -> Response:
    return JSONResponse(wire.error_body(status, message), status)
