"""Who gets in, and the one shape of everything that is refused or fails."""

import asyncio
import dataclasses
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from tests.unit.web.fakes import API_KEY, Desk, client_of, held, refusal

from omni.errors import AgentFailed, RecordNotFound, SettingsError, StoreError
from omni.web.auth import keyed_router
from omni.web.server import create_web_app
from omni.web.store_calls import StoreCalls

FORM = {"name": "new", "agent_api_url": "http://hive:8886", "agent_api_key": "hive-key"}
KEYED_ROUTES = [
    ("GET", "/api/v1/instances", None),
    ("POST", "/api/v1/instances", FORM),
    ("GET", "/api/v1/instances/supported-channels", None),
    ("GET", "/api/v1/instances/support", None),
    ("PUT", "/api/v1/instances/support", {"is_active": False}),
    ("DELETE", "/api/v1/instances/support", None),
    ("POST", "/api/v1/instances/support/set-default", None),
    ("POST", "/api/v1/instance/support/send-text", {"phone_number": "5511999990001", "text": "Hi"}),
    ("GET", "/api/v1/traces", None),
    ("GET", "/api/v1/traces/analytics/summary", None),
    ("GET", "/api/v1/traces/phone/5511999990001", None),
    ("GET", "/api/v1/traces/t1", None),
    ("GET", "/api/v1/traces/t1/payloads", None),
    ("GET", "/api/v1/traces/t1/streaming", None),
    ("POST", "/api/v1/traces/t1/cancel", None),
    ("DELETE", "/api/v1/traces/cleanup?dry_run=false", None),
]
MISSING = refusal(401, "unauthorized", "The API key is missing: send it as x-api-key or as Authorization: Bearer.")
WRONG = refusal(401, "unauthorized", "The API key is not accepted.")
FAILED = refusal(500, "internal_error", "The server failed while answering this request.")


def test_the_list_of_keyed_routes_is_complete(desk: Desk):
    paths = {
        (method.upper(), path)
        for path, methods in desk.app().openapi()["paths"].items()
        if path.startswith("/api/v1")
        for method in methods
    }
    assert len(paths) == len(KEYED_ROUTES)


REFUSED_HEADERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, MISSING),
    ({"authorization": "Basic b21uaQ=="}, MISSING),
    ({"x-api-key": ""}, WRONG),
    ({"x-api-key": "wrong"}, WRONG),
    ({"authorization": "Bearer wrong"}, WRONG),
    ({"x-api-key": API_KEY[:-1]}, WRONG),
    ({"x-api-key": API_KEY.upper()}, WRONG),
    ({"x-api-key": "ключ".encode()}, WRONG),
]


@pytest.mark.parametrize(("method", "path", "body"), KEYED_ROUTES)
async def test_no_route_of_the_api_works_without_the_key(desk: Desk, method: str, path: str, body: Any):
    async with client_of(desk.app(), key=None) as client:
        answers = [await client.request(method, path, json=body, headers=headers) for headers, _ in REFUSED_HEADERS]

    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (401, refused) for _, refused in REFUSED_HEADERS
    ]
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert (desk.changed, desk.channel.sent, desk.traces.asked) == ([], [], [])


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": API_KEY},
        {"authorization": f"Bearer {API_KEY}"},
        {"authorization": f"BEARER   {API_KEY}"},
        {"x-api-key": "wrong", "authorization": f"Bearer {API_KEY}"},
    ],
)
async def test_either_header_admits(desk: Desk, headers: dict[str, str]):
    async with client_of(desk.app(), key=None) as client:
        assert (await client.get("/api/v1/instances", headers=headers)).status_code == 200


async def test_environment_test_opens_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """The predecessor served everything without a key when ENVIRONMENT said test."""
    for name in ("ENVIRONMENT", "OMNI_ENVIRONMENT", "AUTOMAGIK_OMNI_ENVIRONMENT"):
        monkeypatch.setenv(name, "test")

    async with client_of(desk.app(), key=None) as client:
        assert (await client.get("/api/v1/instances")).status_code == 401


@pytest.mark.parametrize("api_key", ["", "   "])
def test_an_application_without_a_key_is_not_built(desk: Desk, api_key: str):
    with pytest.raises(SettingsError, match="AUTOMAGIK_OMNI_API_KEY"):
        create_web_app(dataclasses.replace(desk.parts(), api_key=api_key))


def test_the_parts_do_not_show_the_key(desk: Desk):
    assert API_KEY not in repr(desk.parts())


async def test_the_key_is_checked_before_the_body_is_read(desk: Desk):
    num_pieces_read = 0

    async def pieces():
        nonlocal num_pieces_read
        num_pieces_read += 1
        yield b"{"

    async with client_of(desk.app(), key=None) as client:
        answer = await client.post("/api/v1/instances", content=pieces())

    assert (answer.status_code, num_pieces_read) == (401, 0)


async def test_a_rest_body_over_a_mebibyte_is_refused(client: httpx.AsyncClient):
    answer = await client.post("/api/v1/instances", content=b"x" * 1_048_577)

    assert (answer.status_code, answer.json()) == (
        413,
        refusal(413, "request_too_large", "The body is larger than 1048576 bytes."),
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "sentence"),
    [
        ("GET", "/nowhere", 404, "route_not_found", "There is no such route."),
        ("GET", "/api/v1/nowhere", 404, "route_not_found", "There is no such route."),
        ("PATCH", "/health", 405, "method_not_allowed", "This route does not take that method."),
        ("GET", "/webhook/evolution/support", 405, "method_not_allowed", "This route does not take that method."),
    ],
)
async def test_an_unknown_route_or_method_has_the_same_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str, sentence: str
):
    answer = await client.request(method, path)

    assert (answer.status_code, answer.json()) == (status, refusal(status, code, sentence))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/health", "GET"),
        ("PATCH", "/api/v1/instances", "GET, POST"),
        ("POST", "/api/v1/instances/support", "DELETE, GET, PUT"),
        ("PUT", "/webhook/evolution/support", "POST"),
    ],
)
async def test_a_wrong_method_names_all_the_right_ones(client: httpx.AsyncClient, method: str, path: str, allowed: str):
    answer = await client.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/v1/instances/a%00b", "name"),
        ("/api/v1/traces/%00", "trace_id"),
        ("/api/v1/traces/%00/streaming", "trace_id"),
        ("/api/v1/traces/phone/%00", "phone"),
        ("/api/v1/traces?instance_name=%00", "instance_name"),
        ("/api/v1/traces?limit=5&trace_status=done%00", "trace_status"),
    ],
)
async def test_a_nul_in_an_address_is_refused_before_the_database_has_to(
    desk: Desk, client: httpx.AsyncClient, path: str, field: str
):
    """PostgreSQL has no NUL in its texts: the driver's refusal looked like a database that is down."""
    answer = await client.get(path)

    problem = "must not hold a NUL character"
    assert (answer.status_code, answer.json()) == (
        422,
        refusal(422, "request_invalid", f"{field}: {problem}", fields=[{"field": field, "message": problem}]),
    )
    assert (desk.instances.num_reads, desk.traces.asked) == (1, [])


@pytest.mark.parametrize("path", ["/api/v1/instances?skip={}", "/api/v1/traces?all_time=true&offset={}"])
async def test_what_no_database_can_count_to_is_a_422(client: httpx.AsyncClient, path: str):
    answers = [await client.get(path.format(number)) for number in (2**31 - 1, 2**31, 10**30)]

    assert [answer.status_code for answer in answers] == [200, 422, 422]


async def test_invalid_inputs_are_named_and_never_repeated(client: httpx.AsyncClient):
    """An input may be a key in the wrong place."""
    answer = await client.post(
        "/api/v1/instances",
        json={"name": "a/b", "agent_api_url": "ftp://secret-in-url", "agent_timeout": 0, "is_active": "secret-word"},
    )

    fields = {
        "name": "must be 1 to 100 letters, digits, spaces, dots, dashes or underscores, "
        "beginning with a letter or digit",
        "agent_api_url": "must be an address that begins with http:// or https://",
        "agent_api_key": "field required",
        "agent_timeout": "input should be greater than or equal to 1",
        "is_active": "input should be a valid boolean, unable to interpret input",
    }
    assert (answer.status_code, answer.json()) == (
        422,
        refusal(
            422,
            "request_invalid",
            "; ".join(f"{field}: {message}" for field, message in fields.items()),
            fields=[{"field": field, "message": message} for field, message in fields.items()],
        ),
    )
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "body: is not valid JSON"),
        (b"", "body: field required"),
        (b"[]", "body: input should be a valid dictionary or object to extract fields from"),
        (b'{"name": "\xff"}', "body: is not valid JSON"),
        (b"[" * 100_000, "body: is not valid JSON"),
    ],
)
async def test_a_body_that_is_no_object_is_a_422(client: httpx.AsyncClient, body: bytes, sentence: str):
    answer = await client.post("/api/v1/instances", content=body, headers={"content-type": "application/json"})

    assert (answer.status_code, answer.json()["detail"]) == (422, sentence)


def exploding_app(desk: Desk, exc: Exception) -> FastAPI:
    app = desk.app()
    router = keyed_router("/explosions", tag="test")

    @router.get("")
    async def explode() -> None:
        raise exc

    app.include_router(router)
    return app


async def test_an_unexpected_failure_is_a_plain_500_and_a_log_line_without_its_words(
    desk: Desk, caplog: pytest.LogCaptureFixture
):
    exc = RuntimeError("the user wrote: my password is 1234")
    with caplog.at_level(logging.DEBUG):
        async with client_of(exploding_app(desk, exc)) as client:
            answer = await client.get("/api/v1/explosions")

    assert (answer.status_code, answer.json()) == (500, FAILED)
    (record,) = [record for record in caplog.records if record.name == "omni.web.errors"]
    assert (record.levelname, record.message, record.exception) == ("ERROR", "request_failed", "RuntimeError")
    assert record.where.startswith("test_auth_and_errors.py:")
    assert "password" not in caplog.text


@pytest.mark.parametrize(
    ("exc", "body"),
    [
        (RecordNotFound("Trace 'x' not found"), refusal(404, "record_not_found", "Trace 'x' not found", stage="store")),
        (StoreError("It exists.", status_code=409), refusal(409, "conflict", "It exists.", stage="store")),
        (
            StoreError("disk I/O error in /var/lib/omni.db"),
            refusal(
                503,
                "store_unavailable",
                "The database cannot be reached at the moment; try again later.",
                stage="store",
            ),
        ),
        (
            AgentFailed("The agent failed.", status_code=404),
            refusal(500, "internal_error", "The server failed while answering this request.", stage="streaming_error"),
        ),
        (HTTPException(404, "No such page."), refusal(404, "not_found", "No such page.")),
        (HTTPException(418), refusal(418, "i_m_a_teapot", "I'm a Teapot.")),
    ],
)
async def test_every_error_has_the_one_shape(desk: Desk, exc: Exception, body: dict[str, Any]):
    async with client_of(exploding_app(desk, exc)) as client:
        answer = await client.get("/api/v1/explosions")

    assert (answer.status_code, answer.json()) == (body["error"]["status"], body)


async def test_a_read_that_hangs_is_given_up_with_a_503(desk: Desk):
    app = desk.app()
    app.state.web = dataclasses.replace(app.state.web, store_calls=StoreCalls(timeout_s=0.01))
    desk.traces.gate.close()

    async with client_of(app) as client:
        reading = asyncio.create_task(client.get("/api/v1/traces"))
        await held(desk.traces.gate)
        answer = await reading

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")


async def test_the_given_lifespan_runs_around_the_application(desk: Desk):
    seen: list[str] = []

    class Lifespan:
        async def __aenter__(self) -> None:
            seen.append("started")

        async def __aexit__(self, *failure: object) -> None:
            seen.append("stopped")

    app = create_web_app(desk.parts(), lifespan=lambda app: Lifespan())
    async with app.router.lifespan_context(app):
        assert seen == ["started"]
    assert seen == ["started", "stopped"]
