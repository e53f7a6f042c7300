"""Answers in one document: the status is believed where it says something, errors are never the answer."""

import json

import pytest

from omni.agents.hive_replies import content_text, interpret_reply, is_reply
from omni.errors import AgentProtocolError
from omni.model import RunEnded, TextDelta, ToolCall


def reply(**fields):
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("status", "ending", "is_shown"),
    [
        (None, "completed", True),
        ("RUNNING", "completed", True),
        ("COMPLETED", "completed", True),
        ("new word", "completed", True),
        (3, "completed", True),
        ("PAUSED", "paused", True),
        ("paused", "paused", True),
        ("ERROR", "error", False),
        ("CANCELLED", "cancelled", False),
        ("PENDING", "incomplete", False),
    ],
)
def test_only_some_statuses_mean_something(status, ending, is_shown):
    *events, end = interpret_reply(reply(content="text", status=status), 4)
    assert events == ([TextDelta(4, "text", "RunReply")] if is_shown else [])
    assert end == RunEnded(
        mono_ns=4,
        ending=ending,
        event_type="RunReply",
        content="text" if is_shown else None,
        error_message="text" if ending == "error" else None,
    )


def test_a_tool_that_waits_for_consent_has_not_run():
    tools = [
        {"tool_name": "a", "result": "7", "tool_call_error": False},
        {"tool_name": "b", "result": None, "tool_call_error": True},
        {"tool_name": "c", "result": None, "tool_call_error": None, "requires_confirmation": True},
        "odd",
    ]
    assert interpret_reply(reply(status="PAUSED", tools=tools), 4)[:-1] == (
        ToolCall(mono_ns=4, phase="started", name="a"),
        ToolCall(mono_ns=4, phase="completed", name="a"),
        ToolCall(mono_ns=4, phase="started", name="b"),
        ToolCall(mono_ns=4, phase="completed", name="b", is_error=True),
    )


@pytest.mark.parametrize("body", [b"", b"Internal Server Error", b"[1]", b'"text"', b'{"content":', b'{"a":"\xff'])
def test_anything_but_an_object_is_no_reply(body):
    assert is_reply(body) is False
    with pytest.raises(AgentProtocolError):
        interpret_reply(body, 4)


@pytest.mark.parametrize(
    ("fields", "is_run"),
    [
        ({"content": "a"}, True),
        ({"run_id": "r"}, True),
        ({"run_id": "r", "event": "RunStarted"}, False),
        ({"status": "ok"}, False),
        ({"detail": "Not Found"}, False),
        ({}, False),
    ],
)
def test_a_reply_is_told_from_events_and_from_other_documents(fields, is_run):
    assert is_reply(reply(**fields)) is is_run


def test_missing_and_empty_content_is_none():
    assert [content_text(value) for value in (None, "", " ", "a", {})] == [None, None, " ", "a", "{}"]
