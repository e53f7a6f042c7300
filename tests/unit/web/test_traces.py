"""The trace routes: what they ask the store for, and every field they answer."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.web.fakes import Desk, client_of, refusal

from omni.ports import PayloadRow, TraceFilter, TraceRow, TraceSummary
from omni.web.errors import RequestRefused
from omni.web.times import iso_utc, read_moment

BASE = "/api/v1/traces"
DAY_BEFORE = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
ROW = TraceRow(
    trace_id="t1",
    instance_name="support",
    whatsapp_message_id="3EB0",
    sender_phone="5511999990001",
    sender_name="Maria",
    sender_jid="5511999990001@s.whatsapp.net",
    message_type="text",
    has_media=False,
    has_quoted_message=True,
    message_length=12,
    session_name="whatsapp_5511999990001",
    agent_session_id="s-1",
    received_at=datetime(2026, 11, 22, 9, 59, 0, 123456, tzinfo=UTC),
    completed_at=datetime(2026, 11, 22, 9, 59, 1, tzinfo=UTC),
    status="completed",
    agent_processing_time_ms=450,
    total_processing_time_ms=870,
    agent_response_success=True,
    evolution_success=True,
)
SHOWN = {
    "trace_id": "t1",
    "instance_name": "support",
    "whatsapp_message_id": "3EB0",
    "sender_phone": "5511999990001",
    "sender_name": "Maria",
    "message_type": "text",
    "has_media": False,
    "has_quoted_message": True,
    "session_name": "whatsapp_5511999990001",
    "agent_session_id": "s-1",
    "status": "completed",
    "error_message": None,
    "error_stage": None,
    "received_at": "2026-11-22T09:59:00.123456",
    "completed_at": "2026-11-22T09:59:01",
    "agent_processing_time_ms": 450,
    "total_processing_time_ms": 870,
    "agent_response_success": True,
    "evolution_success": True,
}
PAYLOADS = [
    PayloadRow(
        id=1,
        trace_id="t1",
        stage="webhook_received",
        payload_type="webhook",
        payload={"text": "olá 🐛"},
        timestamp=datetime(2026, 11, 22, 9, 59, tzinfo=UTC),
        payload_size_original=300,
        payload_size_compressed=200,
        contains_media=False,
        contains_base64=False,
    ),
    PayloadRow(
        id=2,
        trace_id="t1",
        stage="streaming_error",
        payload_type="error",
        payload=None,
        timestamp=None,
        status_code=500,
        error_details="Payload compression failed",
        payload_size_original=0,
    ),
]


@pytest.fixture
def desk(desk: Desk) -> Desk:
    desk.traces.rows = [ROW, TraceRow(trace_id="t2")]
    desk.traces.payloads = list(PAYLOADS)
    return desk


async def test_traces_are_listed_with_their_nineteen_fields(client: httpx.AsyncClient):
    answer = await client.get(BASE)

    assert (answer.status_code, answer.json()) == (200, [SHOWN, dict.fromkeys(SHOWN) | {"trace_id": "t2"}])
    assert len(SHOWN) == 19


async def test_without_dates_only_the_last_day_is_listed(desk: Desk, client: httpx.AsyncClient):
    await client.get(BASE)

    assert desk.traces.asked == [TraceFilter(received_from=DAY_BEFORE)]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"all_time": "true"}, TraceFilter()),
        ({"all_time": "true", "phone": "5511"}, TraceFilter(phone="5511")),
        ({"all_time": "true", "sender_phone": "5511"}, TraceFilter(phone="5511")),
        ({"all_time": "true", "phone": "5511", "sender_phone": "5511"}, TraceFilter(phone="5511")),
        (
            {
                "all_time": "true",
                "instance_name": "support",
                "trace_status": "failed",
                "message_type": "image",
                "session_name": "s",
                "agent_session_id": "a",
                "has_media": "true",
                "limit": "1000",
                "offset": "20",
            },
            TraceFilter(
                instance_name="support",
                status="failed",
                message_type="image",
                session_name="s",
                agent_session_id="a",
                has_media=True,
                limit=1000,
                offset=20,
            ),
        ),
        ({"all_time": "true", "has_media": "false"}, TraceFilter(has_media=False)),
        ({"all_time": "true", "phone": "", "trace_status": ""}, TraceFilter()),
        ({"start_date": "2026-11-20"}, TraceFilter(received_from=datetime(2026, 11, 20, tzinfo=UTC))),
        (
            {"start_date": "2026-11-20T08:00:00-03:00", "all_time": "true"},
            TraceFilter(received_from=datetime(2026, 11, 20, 11, tzinfo=UTC)),
        ),
        (
            {"start_date": "2026-11-20T08:00:00Z", "end_date": "2026-11-20T09:00:00"},
            TraceFilter(
                received_from=datetime(2026, 11, 20, 8, tzinfo=UTC), received_to=datetime(2026, 11, 20, 9, tzinfo=UTC)
            ),
        ),
        (
            {"start_date": "2026-11-20", "end_date": "2026-11-20"},
            TraceFilter(
                received_from=datetime(2026, 11, 20, tzinfo=UTC),
                received_to=datetime(2026, 11, 20, 23, 59, 59, 999999, tzinfo=UTC),
            ),
        ),
        (
            {"end_date": "2026-11-20"},
            TraceFilter(received_to=datetime(2026, 11, 20, 23, 59, 59, 999999, tzinfo=UTC)),
        ),
        ({"start_date": "", "end_date": ""}, TraceFilter(received_from=DAY_BEFORE)),
    ],
)
async def test_every_parameter_becomes_part_of_the_question(
    desk: Desk, client: httpx.AsyncClient, query: dict[str, str], wanted: TraceFilter
):
    answer = await client.get(BASE, params=query)

    assert answer.status_code == 200
    assert desk.traces.asked == [wanted]


async def test_an_unescaped_plus_in_an_offset_is_understood(desk: Desk, client: httpx.AsyncClient):
    await client.get(f"{BASE}?start_date=2026-11-20T08:00:00+02:00")

    assert desk.traces.asked == [TraceFilter(received_from=datetime(2026, 11, 20, 6, tzinfo=UTC))]


DATE_RULE = "is no date (2026-11-22) and no time (2026-11-22T10:00:00Z)"


@pytest.mark.parametrize(
    ("query", "field", "rule"),
    [
        ({"start_date": "yesterday"}, "start_date", DATE_RULE),
        ({"end_date": "2026-02-30"}, "end_date", DATE_RULE),
        ({"end_date": "2026-13-01T00:00:00"}, "end_date", DATE_RULE),
        ({"start_date": "0001-01-01T00:00:00+14:00"}, "start_date", DATE_RULE),
        ({"start_date": "2026-11-22", "end_date": "2026-11-21"}, "start_date", "is after end_date"),
        ({"phone": "1", "sender_phone": "2"}, "sender_phone", "differs from phone, which means the same"),
        ({"limit": "0"}, "limit", "input should be greater than or equal to 1"),
        ({"limit": "1001"}, "limit", "input should be less than or equal to 1000"),
        ({"offset": "-1"}, "offset", "input should be greater than or equal to 0"),
        (
            {"has_media": "maybe"},
            "has_media",
            "input should be a valid boolean, unable to interpret input",
        ),
    ],
)
async def test_an_unacceptable_parameter_is_refused_clearly(
    desk: Desk, client: httpx.AsyncClient, query: dict[str, str], field: str, rule: str
):
    answer = await client.get(BASE, params=query)

    assert (answer.status_code, answer.json()) == (
        422,
        refusal(422, "request_invalid", f"{field}: {rule}", fields=[{"field": field, "message": rule}]),
    )
    assert desk.traces.asked == []


async def test_one_trace_is_shown(client: httpx.AsyncClient):
    answer = await client.get(f"{BASE}/t1")

    assert (answer.status_code, answer.json()) == (200, SHOWN)


@pytest.mark.parametrize("path", ["", "/payloads", "/streaming"])
async def test_an_unknown_trace_is_a_404(client: httpx.AsyncClient, path: str):
    answer = await client.get(f"{BASE}/gone{path}")

    assert (answer.status_code, answer.json()) == (
        404,
        refusal(404, "record_not_found", "Trace 'gone' not found", stage="store"),
    )


SHOWN_PAYLOADS: list[dict[str, Any]] = [
    {
        "id": 1,
        "trace_id": "t1",
        "stage": "webhook_received",
        "payload_type": "webhook",
        "timestamp": "2026-11-22T09:59:00",
        "status_code": None,
        "error_details": None,
        "payload_size_original": 300,
        "payload_size_compressed": 200,
        "compression_ratio": 0.67,
        "contains_media": False,
        "contains_base64": False,
        "payload": None,
    },
    {
        "id": 2,
        "trace_id": "t1",
        "stage": "streaming_error",
        "payload_type": "error",
        "timestamp": None,
        "status_code": 500,
        "error_details": "Payload compression failed",
        "payload_size_original": 0,
        "payload_size_compressed": None,
        "compression_ratio": None,
        "contains_media": None,
        "contains_base64": None,
        "payload": None,
    },
]


async def test_stages_are_listed_without_their_payloads(client: httpx.AsyncClient):
    assert (await client.get(f"{BASE}/t1/payloads")).json() == SHOWN_PAYLOADS


async def test_stages_are_listed_with_their_payloads_when_asked(client: httpx.AsyncClient):
    answer = await client.get(f"{BASE}/t1/payloads", params={"include_payload": True})

    assert answer.json() == [SHOWN_PAYLOADS[0] | {"payload": {"text": "olá 🐛"}}, SHOWN_PAYLOADS[1]]


async def test_the_streaming_document_is_made_from_the_trace_and_its_payloads(client: httpx.AsyncClient):
    answer = await client.get(f"{BASE}/t1/streaming")

    assert (answer.status_code, answer.json()) == (
        200,
        {"trace_id": "t1", "stages": ["webhook_received", "streaming_error"]},
    )


async def test_the_summary_is_not_taken_for_a_trace(desk: Desk, client: httpx.AsyncClient):
    desk.traces.summary = TraceSummary(
        total_messages=3,
        successful_messages=2,
        failed_messages=1,
        success_rate=66.67,
        avg_processing_time_ms=870.5,
        avg_agent_time_ms=None,
        message_types={"text": 3},
        error_stages={"streaming_error": 1},
        instances={"support": 3},
    )

    answer = await client.get(f"{BASE}/analytics/summary", params={"instance_name": "support"})

    assert (answer.status_code, answer.json()) == (
        200,
        {
            "total_messages": 3,
            "successful_messages": 2,
            "failed_messages": 1,
            "success_rate": 66.67,
            "avg_processing_time_ms": 870.5,
            "avg_agent_time_ms": None,
            "message_types": {"text": 3},
            "error_stages": {"streaming_error": 1},
            "instances": {"support": 3},
        },
    )
    assert desk.traces.asked == [(DAY_BEFORE, None, "support")]


async def test_the_summary_covers_all_time_when_asked(desk: Desk, client: httpx.AsyncClient):
    await client.get(f"{BASE}/analytics/summary?all_time=true")

    assert desk.traces.asked == [(None, None, None)]


async def test_traces_of_a_phone_are_listed_however_old(desk: Desk, client: httpx.AsyncClient):
    answer = await client.get(f"{BASE}/phone/5511999990001", params={"limit": 1})

    assert answer.json() == [SHOWN]
    assert desk.traces.asked == [TraceFilter(phone="5511999990001", limit=1)]


@pytest.mark.parametrize("limit", [0, 501])
async def test_traces_of_a_phone_are_at_most_five_hundred(client: httpx.AsyncClient, limit: int):
    assert (await client.get(f"{BASE}/phone/1", params={"limit": limit})).status_code == 422


async def test_cleanup_only_counts_unless_told_otherwise(desk: Desk, client: httpx.AsyncClient):
    answer = await client.delete(f"{BASE}/cleanup")

    assert (answer.status_code, answer.json()) == (
        200,
        {
            "status": "dry_run",
            "traces_to_delete": 3,
            "cutoff_date": "2026-10-23T10:00:00",
            "message": "3 traces received before 2026-10-23T10:00:00 would be removed.",
        },
    )
    assert desk.traces.asked == [("count", datetime(2026, 10, 23, 10, tzinfo=UTC))]


async def test_cleanup_removes_when_told(desk: Desk, client: httpx.AsyncClient):
    answer = await client.delete(f"{BASE}/cleanup", params={"dry_run": "false", "days_old": 1})

    assert answer.json() == {
        "status": "success",
        "traces_deleted": 2,
        "cutoff_date": "2026-11-21T10:00:00",
        "message": "2 traces received before 2026-11-21T10:00:00 were removed.",
    }
    assert desk.traces.asked == [("delete", DAY_BEFORE)]


@pytest.mark.parametrize("query", ["days_old=0", "days_old=366", "dry_run=perhaps"])
async def test_cleanup_out_of_bounds_removes_nothing(desk: Desk, client: httpx.AsyncClient, query: str):
    assert (await client.delete(f"{BASE}/cleanup?{query}")).status_code == 422
    assert desk.traces.asked == []


async def test_every_read_first_waits_until_what_was_logged_is_stored(desk: Desk, client: httpx.AsyncClient):
    for path in ("", "/t1", "/t1/payloads", "/t1/streaming", "/analytics/summary", "/phone/1"):
        await client.get(BASE + path)

    assert desk.num_flushes == 6


async def test_a_writer_that_hangs_delays_a_read_only_so_long(desk: Desk, caplog: pytest.LogCaptureFixture):
    desk.flush_hangs = True
    app = desk.app()
    app.state.web = dataclasses.replace(app.state.web, flush_wait_s=0.01)

    async with client_of(app) as client:
        answer = await client.get(f"{BASE}/t1")

    assert (answer.status_code, answer.json()) == (200, SHOWN)
    assert "trace_flush_slow" in caplog.messages


@given(st.datetimes(timezones=st.timezones()))
def test_a_moment_written_in_any_zone_reads_back_as_the_same_moment(moment: datetime):
    written = moment.isoformat()
    try:
        in_utc = moment.astimezone(UTC)
    except OverflowError:
        return
    assert read_moment(written, field="x") == in_utc
    assert read_moment(iso_utc(moment), field="x") == in_utc


@given(st.text(max_size=30))
def test_any_text_is_a_moment_or_a_refusal_naming_the_field(written: str):
    refused: list[tuple[str, str]] = []
    moment = None
    try:
        moment = read_moment(written, field="start_date")
    except RequestRefused as exc:
        refused = list(exc.fields)

    assert refused in ([], [("start_date", DATE_RULE)])
    assert moment is None or moment.tzinfo is UTC
