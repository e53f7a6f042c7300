"""Where Evolution API delivers its events: checks who calls and whom they name, hands the event in, answers when it is stored.

Nothing in the body is trusted for more than its event: its ``server_url`` and ``apikey`` are never used, and the instance is the
one the path names. The answer waits for no agent, no delivery and, for an instance seen in the last seconds, no database.
A call that might succeed later gets a 503, because Evolution repeats those and drops what is answered with a 4xx for good.
"""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import Route

from omni.errors import InstanceNotFound
from omni.gateway.turn import Verdict
from omni.web.context import context_of
from omni.web.errors import documented
from omni.web.request_body import read_webhook

router = APIRouter(prefix="/webhook/evolution", tags=["webhook"])

InstanceName = Annotated[str, Path(description="Name of a configured instance.")]

INSTANCE_INACTIVE = Verdict(status="ignored", reason="instance_inactive")

_ABOUT = (
    "Takes one event of Evolution API, in the envelope its version 2 sends, and answers before any work on it begins. "
    "An event that is understood and not acted on is a success with status `ignored` and the reason. "
    "Authentication: the API key as `x-api-key` or `Authorization: Bearer`, or the token Evolution signs when the instance's "
    "webhook headers hold a `jwt_key` equal to the instance's `webhook_secret`; whether a call without either is taken is "
    "a setting (`AUTOMAGIK_OMNI_REQUIRE_WEBHOOK_AUTH`, and `requires_webhook_auth` per instance). "
    "A body larger than `AUTOMAGIK_OMNI_WEBHOOK_MAX_BYTES` is refused while it is read."
)
_ERRORS = documented(400, 401, 404, 413, 422, 500, 503)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "additionalProperties": True},
                "example": {
                    "event": "messages.upsert",
                    "instance": "support",
                    "data": {
                        "key": {"remoteJid": "5511999990001@s.whatsapp.net", "fromMe": False, "id": "3EB0A1"},
                        "pushName": "Maria",
                        "message": {"conversation": "Hello"},
                        "messageType": "conversation",
                        "messageTimestamp": 1795342685,
                    },
                },
            }
        },
    }
}


class WebhookReply(BaseModel):
    """What became of one event."""

    status: str = Field(description="`success` when it was taken in, `ignored` when there is nothing to do with it.")
    instance: str = Field(description="The instance, as the path named it.")
    trace_id: str | None = Field(description="The trace that follows the message, null when there is none.")
    reason: str | None = Field(description="Why it was ignored, a stable word; null otherwise.")


@router.post(
    "/{instance_name}",
    summary="Take an event from Evolution API",
    description=_ABOUT,
    response_model=WebhookReply,
    responses=_ERRORS,
    openapi_extra=_BODY,
)
async def take_evolution_event(request: Request, instance_name: InstanceName) -> Response:
    """Authenticate, read and hand in one event."""
    return await _take(request, instance_name)


@router.post(
    "/{instance_name}/{event:path}",
    summary="Take an event from Evolution API at its own address",
    description=f"For webhooks set with `byEvents`, which add the event's name to the address. {_ABOUT}",
    response_model=WebhookReply,
    responses=_ERRORS,
    openapi_extra=_BODY,
)
async def take_evolution_event_by_name(
    request: Request,
    instance_name: InstanceName,
    event: Annotated[str, Path(description="The event in kebab case. The name inside the body is what counts.")],
) -> Response:
    """Authenticate, read and hand in one event; the address adds nothing to what the body says."""
    del event
    return await _take(request, instance_name)


async def _take_directly(request: Request) -> Response:
    return await _take(request, request.path_params["instance_name"])


direct_routes = [
    Route(f"{router.prefix}{path}", _take_directly, methods=["POST"])
    for path in ("/{instance_name}", "/{instance_name}/{event:path}")
]
"""The same two routes without FastAPI's reading of parameters and answers, which costs more than taking the event: 170 of 500 us.

They stand before the others and are the ones that are called; the others describe them.
"""


async def _take(request: Request, instance_name: str) -> Response:
    context = context_of(request)
    # No name holds a NUL, and PostgreSQL refuses to look for one: a 503, after which Evolution would come again.
    instance = None if "\0" in instance_name else await context.instances.get(instance_name)
    if instance is None:
        raise InstanceNotFound("No instance of that name is configured.")
    context.webhook_guard.check(instance, request.headers)
    body = await read_webhook(request, max_bytes=context.parts.settings.webhook_max_bytes)
    verdict = await context.parts.take_webhook(instance, body) if instance.is_active else INSTANCE_INACTIVE
    reply = {
        "status": verdict.status,
        "instance": instance_name,
        "trace_id": verdict.trace_id,
        "reason": verdict.reason,
    }
    return Response(msgspec.json.encode(reply), media_type="application/json")
