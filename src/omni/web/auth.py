"""Admits callers of the REST API: the key as ``x-api-key`` or as ``Authorization: Bearer``, and nothing without it.

No setting and no environment opens the API; an application without a key is not built at all. The key is checked
before the body is read, in the route class itself, so a route made by ``keyed_router`` cannot forget it.
"""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message

from omni.web.context import context_of
from omni.web.credentials import carries_any, carries_key
from omni.web.errors import RequestRefused, documented, input_refused
from omni.web.request_body import MAX_REQUEST_BYTES, read_bounded

_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


def keyed_router(prefix: str, *, tag: str) -> APIRouter:
    """A router for routes under ``/api/v1`` that demand the API key and bound their bodies."""
    header = APIKeyHeader(name="x-api-key", scheme_name="ApiKey", description="The API key.", auto_error=False)
    bearer = HTTPBearer(scheme_name="Bearer", description="The API key as a bearer token.", auto_error=False)
    return APIRouter(
        prefix=f"/api/v1{prefix}",
        tags=[tag],
        route_class=KeyedRoute,
        # Declared for the OpenAPI document; the refusal itself is the route class's.
        dependencies=[Security(header), Security(bearer)],
        responses=documented(401, 422, 500, 503),
    )


class KeyedRoute(APIRoute):
    """A route that checks the key first, then the address, and then reads a body of bounded size."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler with the checks in front."""
        answer = super().get_route_handler()

        async def checked(request: Request) -> Response:
            demand_api_key(request)
            _refuse_nul(request)
            if request.method in _METHODS_WITH_BODY:
                request = _with_body(request, await read_bounded(request, max_bytes=MAX_REQUEST_BYTES))
            try:
                return await answer(request)
            except HTTPException as exc:
                # The framework's word for a body that is no UTF-8 or is nested too deeply; other broken JSON is a 422 with it.
                if exc.status_code != HTTPStatus.BAD_REQUEST:
                    raise
                raise input_refused("body", "is not valid JSON") from exc

        return checked


def demand_api_key(request: Request) -> None:
    """Raise RequestRefused (401) unless the request carries the API key."""
    if carries_key(request.headers, context_of(request).parts.api_key):
        return
    sentence = (
        "The API key is not accepted."
        if carries_any(request.headers)
        else "The API key is missing: send it as x-api-key or as Authorization: Bearer."
    )
    raise RequestRefused(sentence, code="unauthorized", status_code=401)


def _refuse_nul(request: Request) -> None:
    """Raise RequestRefused (422) for what no name, id or number can hold and PostgreSQL takes nowhere."""
    for field, value in (*request.path_params.items(), *request.query_params.multi_items()):
        if "\0" in str(value):
            raise input_refused(field, "must not hold a NUL character")


def _with_body(request: Request, body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)
