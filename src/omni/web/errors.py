"""The one shape every refusal and failure is answered in, whoever raised it.

``{"detail": "<sentence>", "error": {"code": "<word>", "stage": "<stage>", "status": <int>}}``, with ``error.fields`` beside them
when single inputs were wrong. ``detail`` is for people, ``code`` is for programs. What went wrong inside stays inside: a 500 says
only that it is one, and the log gets the type of the error and the place, because an error's own words may hold what a
user wrote.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni.errors import OmniError, StoreError, WebhookError
from omni.faults import fault_facts

log = logging.getLogger(__name__)

_FAILED_SENTENCE = "The server failed while answering this request."
_STORE_SENTENCE = "The database cannot be reached at the moment; try again later."
_STORE_CODES = {404: "record_not_found", 409: "conflict", 422: "request_invalid"}
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_ROUTE_SENTENCES = {
    404: ("route_not_found", "There is no such route."),
    405: ("method_not_allowed", "This route does not take that method."),
}


class RequestRefused(OmniError):
    """A request that cannot be carried out as it stands; ``fields`` lists (input, what is wrong with it)."""

    stage = "request"

    def __init__(self, sentence: str, *, code: str, status_code: int, fields: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(sentence, status_code=status_code)
        self.code = code
        self.fields = fields


def input_refused(field: str, message: str) -> RequestRefused:
    """A refusal of one input: 422 with the field named."""
    return RequestRefused(f"{field}: {message}", code="request_invalid", status_code=422, fields=[(field, message)])


class FieldProblem(BaseModel):
    """One input that was not acceptable."""

    field: str = Field(description="The input, with dots between levels.")
    message: str = Field(description="What is wrong with it.")


class ErrorFacts(BaseModel):
    """What a program needs to decide what to do next."""

    code: str = Field(description="A stable word in snake_case.", examples=["request_invalid"])
    stage: str = Field(description="The part of the work that refused or failed.", examples=["request"])
    status: int = Field(description="The HTTP status, repeated.", examples=[422])
    fields: list[FieldProblem] | None = Field(None, description="The inputs that were wrong, where single ones were.")


class ErrorReply(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(title="Error")

    detail: str = Field(description="One sentence for people.")
    error: ErrorFacts


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these error statuses."""
    return {status: {"model": ErrorReply, "description": HTTPStatus(status).phrase} for status in statuses}


def install_error_answers(app: FastAPI) -> None:
    """Make ``app`` answer everything that goes wrong in the one shape."""
    app.add_exception_handler(OmniError, _answer_omni_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_middleware(AnswerFailures)


class AnswerFailures:
    """ASGI middleware: an exception nobody expected becomes a plain 500 and one log line without its words.

    The framework's own last resort would answer in another shape and raise the exception on, whose traceback would be logged
    with all it quotes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def noting_send(message: Message) -> None:
            nonlocal is_started
            is_started = is_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception as exc:  # noqa: BLE001 the edge of the process: whatever it is, the caller gets an answer
            log.error("request_failed", extra=fault_facts(exc))  # noqa: TRY400 the traceback may quote what a user wrote
            if not is_started:
                await _reply(500, "internal_error", "request", _FAILED_SENTENCE)(scope, receive, send)


async def _answer_omni_error(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, OmniError)
    if isinstance(exc, RequestRefused):
        return _reply(exc.status_code or 400, exc.code, exc.stage, exc.sentence, fields=exc.fields)
    if isinstance(exc, WebhookError):
        return _reply(exc.answer_code, _snake_case(type(exc).__name__), exc.stage, exc.sentence)
    if isinstance(exc, StoreError) and exc.status_code is not None and exc.status_code < 500:
        code = _STORE_CODES.get(exc.status_code, "store_refused")
        return _reply(exc.status_code, code, exc.stage, exc.sentence)
    log.error("request_failed", extra=fault_facts(exc))
    if isinstance(exc, StoreError):
        return _reply(503, "store_unavailable", exc.stage, _STORE_SENTENCE)
    return _reply(500, "internal_error", exc.stage, _FAILED_SENTENCE)


async def _answer_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    phrase = HTTPStatus(exc.status_code).phrase
    code, sentence = _snake_case(phrase), str(exc.detail)
    if sentence == phrase:
        code, sentence = _ROUTE_SENTENCES.get(exc.status_code, (code, f"{phrase}."))
    headers = dict(exc.headers or {})
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods_of(request))
    return _reply(exc.status_code, code, "request", sentence, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """The methods this address takes. The framework names those of the first route that has the path, and there may be several."""
    scopes = [(method, {**request.scope, "method": method}) for method in _METHODS]
    routes = request.app.router.routes
    return [method for method, scope in scopes if any(route.matches(scope)[0] is Match.FULL for route in routes)]


async def _answer_invalid_request(_request: Request, exc: Exception) -> Response:
    """Name each wrong input and why, never what it was: it may be a key."""
    assert isinstance(exc, RequestValidationError)
    fields = [(_field_name(error["loc"]), _field_problem(error)) for error in exc.errors()]
    sentence = "; ".join(f"{field}: {message}" for field, message in fields)
    return _reply(422, "request_invalid", "request", sentence, fields=fields)


def _field_name(location: Sequence[str | int]) -> str:
    inner = [str(part) for part in location[1:] if isinstance(part, str)]
    return ".".join(inner) or str(location[0])


def _field_problem(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return "is not valid JSON"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _reply(
    status: int,
    code: str,
    stage: str,
    detail: str,
    *,
    fields: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    facts: dict[str, Any] = {"code": code, "stage": stage, "status": status}
    if fields:
        facts["fields"] = [{"field": field, "message": message} for field, message in fields]
    all_headers = dict(headers or {})
    if status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    body = msgspec.json.encode({"detail": detail, "error": facts})
    return Response(body, status_code=status, headers=all_headers, media_type="application/json")


def _snake_case(words: str) -> str:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", words)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")
