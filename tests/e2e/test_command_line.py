"""The command ``omni`` as a person types it: what it prints, what it answers in JSON, and its exit codes.

The trace shown is made by the real recorder on a clock that stands still, so that the whole picture can be compared.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.processes import Finished, run_omni, run_omni_in_turn

from omni import __version__
from omni.model import InboundMessage, MessageOutcome, OutboundMessage, Usage
from omni.runtime import Runtime
from omni.settings import Settings
from omni.testing import FakeClock
from omni.tracing.streaming_trace_context import StreamingTraceContext

pytestmark = pytest.mark.slow

PIECES = ("Bom dia! ", "Seu pedido ", "saiu.\n\n", "Chega hoje. 🚚")


@pytest.fixture
def trace_id(tmp_path: Path) -> str:
    """The id of a trace in the database that ``omni`` finds by itself in ``tmp_path``: 4 chunks, 2 messages, 900 ms."""
    clock = FakeClock()
    runtime = Runtime(Settings(sqlite_database_path=tmp_path / "data" / "automagik-omni.db"), clock=clock)
    try:
        message = InboundMessage(
            instance_name="shop",
            message_id="3EB0C0",
            chat_key="5511999990001@s.whatsapp.net",
            reply_to="5511999990001@s.whatsapp.net",
            sender_phone="5511999990001",
            sender_name="Maria",
            text="Oi",
            message_type="text",
        )
        trace = StreamingTraceContext.upgrade(runtime.tracer.open_turn(message, is_streaming=True))
        tell_a_stream(trace, clock)
    finally:
        runtime.close()
    return trace.trace_id


def tell_a_stream(trace: StreamingTraceContext, clock: FakeClock) -> None:
    trace.await_delivery()
    trace.log_processing_start()
    clock.advance_ms(10)
    trace.log_agent_request({"message": "Oi"})
    trace.log_streaming_start({"agent_id": "genie"})
    clock.advance_ms(190)
    for index, piece in enumerate(PIECES):
        if index == 0:
            trace.log_first_token(piece)
        trace.log_streaming_chunk(piece, index, event_type="RunContent")
        clock.advance_ms(150)
    trace.log_message(accepted(0, "Bom dia! Seu pedido saiu.", (0, 2), clock, took_ms=80))
    trace.log_streaming_complete("".join(PIECES), usage=Usage(input_tokens=9, output_tokens=4, total_tokens=13))
    clock.advance_ms(100)
    trace.log_message(accepted(1, "Chega hoje. 🚚", (3, 3), clock, took_ms=90))
    trace.end_turn("completed")


def accepted(index: int, text: str, chunks: tuple[int, int], clock: FakeClock, *, took_ms: int) -> MessageOutcome:
    message = OutboundMessage(
        index=index, recipient="5511999990001", text=text, first_chunk=chunks[0], last_chunk=chunks[1]
    )
    return MessageOutcome(
        message=message,
        status="accepted",
        attempts=1,
        queued_ns=clock.mono_ns() - took_ms * 1_000_000,
        started_ns=clock.mono_ns() - took_ms * 1_000_000,
        ended_ns=clock.mono_ns(),
        key_id=f"3EB0{index}",
        status_code=201,
    )


async def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert await run_omni("--version", folder=tmp_path) == Finished(
        exit_code=0, stdout=f"omni {__version__}\n", stderr=""
    )


async def test_a_trace_is_listed_and_drawn(trace_id: str, tmp_path: Path) -> None:
    """What the terminal shows is the trace's own timeline; JSON on request; exit code 1 for what is not there."""
    listed, listed_json, drawn, drawn_json, missing = await run_omni_in_turn(
        ("traces", "list"),
        ("traces", "list", "--json", "--status", "completed"),
        ("traces", "show", trace_id[:8], "--width", "80"),
        ("traces", "show", "last", "--json"),
        ("traces", "show", "no-such-id"),
        folder=tmp_path,
    )

    assert [each.exit_code for each in (listed, listed_json, drawn, drawn_json, missing)] == [0, 0, 0, 0, 1]
    assert (missing.stdout, missing.stderr) == (
        "",
        "omni: no trace among the newest 1000 whose id begins with 'no-such-id'\n",
    )
    assert [line.split() for line in listed.stdout.splitlines()] == [
        [
            "trace",
            "received",
            "UTC",
            "instance",
            "ending",
            "agent",
            "ms",
            "total",
            "ms",
            "chars",
            "error",
        ],
        [trace_id[:8], "11-22", "10:00:00", "shop", "completed", "790", "900", "40"],
    ]
    (row,) = json.loads(listed_json.stdout)
    assert {name: value for name, value in row.items() if value is not None} == {
        "trace_id": trace_id,
        "instance_name": "shop",
        "whatsapp_message_id": "3EB0C0",
        "sender_phone": "5511999990001",
        "sender_name": "Maria",
        "sender_jid": "5511999990001@s.whatsapp.net",
        "message_type": "text",
        "has_media": False,
        "has_quoted_message": False,
        "message_length": 2,
        "received_at": "2026-11-22T10:00:00Z",
        "processing_started_at": "2026-11-22T10:00:00Z",
        "agent_request_at": "2026-11-22T10:00:00.010000Z",
        "agent_response_at": "2026-11-22T10:00:00.800000Z",
        "evolution_send_at": "2026-11-22T10:00:00.900000Z",
        "completed_at": "2026-11-22T10:00:00.900000Z",
        "status": "completed",
        "ending": "completed",
        "agent_processing_time_ms": 790,
        "total_processing_time_ms": 900,
        "agent_request_tokens": 9,
        "agent_response_tokens": 4,
        "agent_response_success": True,
        "agent_response_length": 40,
        "agent_tools_used": 0,
        "evolution_response_code": 201,
        "evolution_success": True,
    }
    lines = [line.rstrip() for line in drawn.stdout.splitlines()]
    assert lines[:2] == [
        f"trace {trace_id}  shop  completed",
        "streamed in 790 ms: 40 characters in 4 chunks, first token after 190 ms, 2 messages accepted",
    ]
    assert lines[10:] == [
        "  queue  agent wait    stream  delivery tail  unaccounted  turn total",
        "10.0 ms    190.0 ms  600.0 ms       100.0 ms       0.0 ms    900.0 ms",
        "",
        "message  chunks    queued  accepted  status    text",
        "      1     0-2  720.0 ms  800.0 ms  accepted  Bom dia! Seu pedido saiu.",
        "      2     3-3  810.0 ms  900.0 ms  accepted  Chega hoje. 🚚",
    ]
    document = json.loads(drawn_json.stdout)
    assert document["headline"] == (
        "streamed in 790 ms: 40 characters in 4 chunks, first token after 190 ms, 2 messages accepted"
    )
    assert [chunk["offset_ms"] for chunk in document["streaming_chunks"]] == [200.0, 350.0, 500.0, 650.0]


async def test_instances_are_added_listed_with_masked_keys_and_removed(tmp_path: Path) -> None:
    """What REST would refuse is refused here too; a name that is taken or not there is exit code 1, a wrong value 2."""
    added, listed, again, wrong, unknown, removed, left = await run_omni_in_turn(
        adding("shop"),
        ("instances", "list", "--json"),
        adding("shop"),
        adding("bad/name"),
        ("instances", "remove", "nobody"),
        ("instances", "remove", "shop"),
        ("instances", "list", "--json"),
        folder=tmp_path,
    )

    assert added == Finished(
        exit_code=0,
        stdout="added shop; set Evolution's webhook to http://<this host>:8882/webhook/evolution/shop\n",
        stderr="",
    )
    (instance,) = json.loads(listed.stdout)
    assert {name: instance[name] for name in _SHOWN} == {
        "name": "shop",
        "evolution_url": "http://127.0.0.1:8080",
        "evolution_key": "…cdef",
        "whatsapp_instance": "shop",
        "agent_instance_type": "hive",
        "agent_api_url": "http://127.0.0.1:8886",
        "agent_api_key": "…cdef",
        "agent_id": "genie",
        "agent_type": "agent",
        "agent_timeout": 60,
        "agent_stream_mode": True,
    }
    assert (again.exit_code, again.stderr) == (1, "omni: There is an instance named 'shop' already.\n")
    assert (wrong.exit_code, "name: must be 1 to 100 letters" in wrong.stderr) == (2, True)
    assert (unknown.exit_code, unknown.stderr) == (1, "omni: There is no instance named 'nobody'.\n")
    assert removed == Finished(exit_code=0, stdout="removed shop\n", stderr="")
    assert left == Finished(exit_code=0, stdout="[]\n", stderr="")


async def test_an_instance_is_given_its_own_words(tmp_path: Path) -> None:
    words = ("--language", "pt", "--notice", "no_answer=Já volto! 🌸", "--notice", "stopped=Tudo bem = parei.")
    added, wrong, unknown, foreign, listed = await run_omni_in_turn(
        (*adding("shop"), *words),
        (*adding("other"), "--notice", "stopped"),
        (*adding("other"), "--notice", "goodbye=Tchau"),
        (*adding("other"), "--language", "fr"),
        ("instances", "list", "--json"),
        folder=tmp_path,
    )

    assert [each.exit_code for each in (added, wrong, unknown, foreign)] == [0, 2, 2, 2]
    assert "must be KIND=TEXT" in wrong.stderr
    assert "notice_texts.goodbye" in unknown.stderr
    assert "language" in foreign.stderr
    (instance,) = json.loads(listed.stdout)
    assert (instance["language"], instance["notice_texts"]) == (
        "pt",
        {"no_answer": "Já volto! 🌸", "stopped": "Tudo bem = parei."},
    )


_SHOWN = (
    "name",
    "evolution_url",
    "evolution_key",
    "whatsapp_instance",
    "agent_instance_type",
    "agent_api_url",
    "agent_api_key",
    "agent_id",
    "agent_type",
    "agent_timeout",
    "agent_stream_mode",
)


def adding(name: str) -> tuple[str, ...]:
    values: dict[str, Any] = {
        "--agent-url": "http://127.0.0.1:8886",
        "--agent-key": "hive-key-0123456789abcdef",
        "--evolution-url": "http://127.0.0.1:8080",
        "--evolution-key": "evolution-key-0123456789abcdef",
        "--agent": "genie",
    }
    return ("instances", "add", name, *(part for option in values.items() for part in option))
