"""``GET /metrics``: for those with the key only, in the format a scraper expects, and there only when something is exported."""

import dataclasses

import pytest
from tests.unit.web.fakes import API_KEY, Desk, client_of

from omni.web.server import create_web_app

TEXT = b"# HELP omni_inbox_waiting Messages that wait.\nomni_inbox_waiting 3.0\n"


@pytest.fixture
def app(desk: Desk):
    return create_web_app(dataclasses.replace(desk.parts(), metrics=lambda: TEXT))


@pytest.mark.parametrize("headers", [{"x-api-key": API_KEY}, {"authorization": f"Bearer {API_KEY}"}])
async def test_a_scraper_with_the_key_gets_the_text(app, headers):
    async with client_of(app, key=None) as client:
        answer = await client.get("/metrics", headers=headers)

    assert (answer.status_code, answer.headers["content-type"], answer.content) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
        TEXT,
    )


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong"}, {"authorization": "Basic abc"}])
async def test_without_the_key_there_is_nothing_to_see(app, headers):
    async with client_of(app, key=None) as client:
        answer = await client.get("/metrics", headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")


async def test_metrics_touch_no_store(desk: Desk, app):
    desk.instances.num_reads = 0
    async with client_of(app) as client:
        await client.get("/metrics")

    assert (desk.instances.num_reads, desk.traces.asked) == (0, [])


async def test_an_application_that_exports_nothing_has_no_such_route(desk: Desk):
    async with client_of(desk.app()) as client:
        assert (await client.get("/metrics")).status_code == 404
