"""What callers and servers hand over is made to fit a trace, or left out."""

import math
from datetime import UTC, datetime

import pytest

from omni.tracing.fitting import as_count, as_payload, as_text, fitting_columns

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        (-1, -1),
        (12.7, 13),
        ("201", 201),
        (2**31 - 1, 2**31 - 1),
        (2**31, None),
        (10**30, None),
        (math.nan, None),
        (math.inf, None),
        (1e300, None),
        (True, None),
        ("many", None),
        ("²", None),
        ("9" * 5_000, None),
        ([1], None),
        (None, None),
    ],
)
def test_counts_are_whole_numbers_of_32_bits(value, count):
    assert as_count(value) == count


@pytest.mark.parametrize(("value", "text"), [("é", "é"), (5511, "5511"), (1.5, "1.5"), (True, None), ({"id": 1}, None)])
def test_texts_are_texts_and_numbers(value, text):
    assert as_text(value) == text


def test_payloads_are_copies():
    given = {"a": 1}
    taken = as_payload(given)
    given["a"] = 2
    assert (taken, as_payload(None), as_payload([1]), as_payload("x", key="message")) == (
        {"a": 1},
        {},
        {"value": [1]},
        {"message": "x"},
    )


def test_columns_that_cannot_fit_are_left_out_and_nothing_given_stays_nothing():
    columns = {
        "status": "processing",
        "sender_phone": 5511,
        "sender_name": {"name": "Ana"},
        "session_name": None,
        "received_at": NOON,
        "completed_at": "2026-11-22",
        "has_media": 1,
        "evolution_success": "yes",
        "agent_tools_used": 10**12,
        "agent_request_tokens": None,
    }
    assert fitting_columns(columns) == {
        "status": "processing",
        "sender_phone": "5511",
        "session_name": None,
        "received_at": NOON,
        "has_media": True,
        "agent_request_tokens": None,
    }
