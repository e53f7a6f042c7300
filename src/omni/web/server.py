"""Puts the routes together into one application.

Built by ``app.py`` with real parts and by tests with small ones. Nothing here is read from the environment, and no setting makes
the REST API open: an application without a key is refused.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from omni.errors import SettingsError
from omni.web import health, instances, messages, metrics, traces, turns, webhook
from omni.web.context import build_context, close_context
from omni.web.errors import install_error_answers
from omni.web.parts import WebParts

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_ABOUT = (
    "Omni answers WhatsApp messages with streaming AI agents and keeps a trace of every answer. "
    "All routes under `/api/v1` need the API key, as `x-api-key` or as `Authorization: Bearer`. "
    "Every refusal has one shape: a sentence in `detail`, and a stable word in `error.code`. "
    "Times are ISO 8601 in UTC, without offset except in the streaming document; durations are milliseconds where the name ends in `_ms`."
)
_TAGS = [
    {"name": "webhook", "description": "Where Evolution API delivers its events."},
    {"name": "instances", "description": "The WhatsApp instances and the agents that answer for them."},
    {"name": "messages", "description": "Sending a message without being asked."},
    {"name": "traces", "description": "What happened to each message, and when."},
    {"name": "health", "description": "Whether Omni is up."},
]


def create_web_app(parts: WebParts, *, lifespan: Lifespan | None = None) -> FastAPI:
    """The application with all routes; ``lifespan`` runs around its life. Raises SettingsError without an API key."""
    if not parts.api_key.strip():
        raise SettingsError("AUTOMAGIK_OMNI_API_KEY: must not be blank; the REST API is never open.")
    context = build_context(parts)

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        try:
            if lifespan is None:
                yield
            else:
                async with lifespan(app):
                    yield
        finally:
            close_context(context)

    # The same application with the manual's scripts served from here: it works without a network.
    app = FastAPIOffline(
        title="Omni",
        version=parts.version,
        description=_ABOUT,
        openapi_tags=_TAGS,
        lifespan=run,
        generate_unique_id_function=_operation_id,
        # Omni exports its own traces; the framework's would carry addresses, and with them phone numbers.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.web = context
    app.router.routes[:0] = webhook.direct_routes
    install_error_answers(app)
    for topic in (webhook, instances, messages, traces, turns, health):
        app.include_router(topic.router)
    if parts.metrics is not None:
        app.include_router(metrics.router)
    return app


def _operation_id(route: APIRoute) -> str:
    """The function's name: unique among the routes, and as stable as they are."""
    return route.name
