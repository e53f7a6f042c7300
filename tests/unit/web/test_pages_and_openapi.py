"""The open pages, and an API description that says what every route takes and answers."""

import dataclasses
import re
from typing import Any

import httpx
import pytest
from tests.unit.web.fakes import Desk, client_of
from tests.unit.web.test_traces import PAYLOADS, ROW

from omni.web.instance_forms import InstanceForm, InstanceReply
from omni.web.server import create_web_app
from omni.web.trace_replies import PayloadReply, SummaryReply, TraceReply, show_payload, show_trace

METHODS = {"get", "post", "put", "delete"}


def operations(desk: Desk) -> list[tuple[str, str, dict[str, Any]]]:
    paths = desk.app().openapi()["paths"]
    return [(method, path, what) for path, methods in paths.items() for method, what in methods.items()]


async def test_health_is_open_and_touches_no_store(desk: Desk):
    desk.instances.num_reads = 0
    async with client_of(desk.app(), key=None) as client:
        answer = await client.get("/health")

    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "healthy", "timestamp": "2026-11-22T10:00:00", "traces_waiting": 0},
    )
    assert (desk.instances.num_reads, desk.traces.asked) == (0, [])


async def test_a_part_may_say_that_it_is_not_well(desk: Desk):
    parts = dataclasses.replace(desk.parts(), health=lambda: {"status": "degraded"})
    async with client_of(create_web_app(parts)) as client:
        assert (await client.get("/health")).json() == {"status": "degraded", "timestamp": "2026-11-22T10:00:00"}


@pytest.mark.parametrize(
    ("sandbox_path", "links"), [(None, ["docs", "health"]), ("/sandbox", ["sandbox", "docs", "health"])]
)
async def test_the_landing_page_links_what_there_is_and_fetches_nothing(
    desk: Desk, sandbox_path: str | None, links: list[str]
):
    desk.sandbox_path = sandbox_path
    async with client_of(desk.app(), key=None) as client:
        answer = await client.get("/")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert re.findall(r'href="([^"]*)"', answer.text) == links
    assert "src=" not in answer.text
    assert "//" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_operation_ids_are_the_stable_ones(desk: Desk):
    assert sorted((what["operationId"], method, path) for method, path, what in operations(desk)) == [
        ("cancel_turn", "post", "/api/v1/traces/{trace_id}/cancel"),
        ("cleanup_traces", "delete", "/api/v1/traces/cleanup"),
        ("create_instance", "post", "/api/v1/instances"),
        ("delete_instance", "delete", "/api/v1/instances/{name}"),
        ("get_health", "get", "/health"),
        ("get_instance", "get", "/api/v1/instances/{name}"),
        ("get_trace", "get", "/api/v1/traces/{trace_id}"),
        ("get_trace_payloads", "get", "/api/v1/traces/{trace_id}/payloads"),
        ("get_trace_streaming", "get", "/api/v1/traces/{trace_id}/streaming"),
        ("list_instances", "get", "/api/v1/instances"),
        ("list_supported_channels", "get", "/api/v1/instances/supported-channels"),
        ("list_traces", "get", "/api/v1/traces"),
        ("list_traces_of_phone", "get", "/api/v1/traces/phone/{phone}"),
        ("send_text", "post", "/api/v1/instance/{name}/send-text"),
        ("set_default_instance", "post", "/api/v1/instances/{name}/set-default"),
        ("summarize_traces", "get", "/api/v1/traces/analytics/summary"),
        ("take_evolution_event", "post", "/webhook/evolution/{instance_name}"),
        ("take_evolution_event_by_name", "post", "/webhook/evolution/{instance_name}/{event}"),
        ("update_instance", "put", "/api/v1/instances/{name}"),
    ]


def test_every_route_says_what_it_does_takes_and_answers(desk: Desk):
    tags = {tag["name"] for tag in desk.app().openapi()["tags"]}
    for method, path, what in operations(desk):
        where = f"{method} {path}"
        assert what["summary"], where
        assert what["description"].endswith("."), where
        assert set(what["tags"]) <= tags, where
        assert all(parameter.get("description") for parameter in what.get("parameters", [])), where
        success = next(answer for status, answer in what["responses"].items() if status.startswith("2"))
        assert (path.endswith("/{name}") and method == "delete") or success["content"]["application/json"]["schema"], (
            where
        )
        for status, answer in what["responses"].items():
            if not status.startswith("2"):
                assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorReply"}, (
                    f"{where} {status}"
                )


def test_every_keyed_route_declares_both_ways_to_send_the_key(desk: Desk):
    for method, path, what in operations(desk):
        wanted = [{"ApiKey": []}, {"Bearer": []}] if path.startswith("/api/v1") else []
        assert what.get("security", []) == wanted, f"{method} {path}"


@pytest.mark.parametrize(
    ("model", "reply"),
    [
        (TraceReply, show_trace(ROW)),
        (PayloadReply, show_payload(PAYLOADS[0], has_payload=True)),
        (PayloadReply, show_payload(PAYLOADS[1], has_payload=False)),
    ],
)
def test_replies_have_exactly_the_documented_fields(model: type[TraceReply], reply: dict[str, Any]):
    assert model.model_validate(reply, strict=True).model_dump() == reply


async def test_the_summary_has_exactly_the_documented_fields(client: httpx.AsyncClient):
    reply = (await client.get("/api/v1/traces/analytics/summary")).json()

    assert SummaryReply.model_validate(reply).model_dump() == reply


def test_everything_that_can_be_set_can_be_seen():
    assert set(InstanceForm.model_fields) <= set(InstanceReply.model_fields)


def test_the_description_carries_the_projects_name_and_version(desk: Desk):
    info = create_web_app(dataclasses.replace(desk.parts(), version="1.2.3")).openapi()["info"]

    assert (info["title"], info["version"]) == ("Omni", "1.2.3")


async def test_the_manual_needs_no_other_server(client: httpx.AsyncClient):
    """An operator without a way to the internet reads it too: every script and style comes from Omni itself."""
    page = (await client.get("/docs")).text

    assert re.findall(r"https?://", page) == []
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert (await client.get(path)).status_code == 200
