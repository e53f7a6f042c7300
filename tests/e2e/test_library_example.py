"""Omni as a library: plain scripts in processes of their own, with no set-up but where the database lies.

The scripts are what users of the predecessor have: a trace context, the router, an instance described by whatever object they keep it
in. What they print is compared with what the simulated agent did, and read again afterwards by another process. Python runs them with
warnings as errors, so an HTTP session or a thread left open would show on standard error.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.processes import Finished, omni_settings, run_omni, run_python

from omni.clock import NS_PER_MS
from omni.sandbox.hive_run import HiveRun
from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.scripts import Say, Script
from omni.sandbox.server import Sandbox, sandbox_instance

pytestmark = pytest.mark.slow

PHONE = "555197285829"
PHONE_JID = f"{PHONE}@s.whatsapp.net"
JOKE = "Por que o Wi-Fi foi ao médico?\n\nPorque estava sem conexão! 📶"
JOKE_BUBBLES = ["Por que o Wi-Fi foi ao médico?", "Porque estava sem conexão! 📶"]

# The agent's clock starts when it has read the request and ours when it is written; a process under load may read late.
EARLY_MS, LATE_MS = 20, 1_500

EXAMPLE = """
import asyncio
import json
import sys
from types import SimpleNamespace

from omni import InstanceConfig, create_streaming_trace_context, message_router

hive_config = {described}(**json.loads(sys.argv[1]))


async def main():
    trace_context = create_streaming_trace_context(
        instance_name="jokes",
        whatsapp_message_id="3EB0JOKE",
        sender_phone="555197285829",
        sender_name="Ana",
        sender_jid="555197285829@s.whatsapp.net",
    )
    success = await message_router.route_message_smart(
        message_text="Conte uma piada",
        recipient="555197285829@s.whatsapp.net",
        instance_config=hive_config,
        trace_context=trace_context,
    )
    summary = trace_context.get_streaming_summary()
    print(json.dumps({{"success": success, "trace_id": trace_context.trace_id, **summary}}))


asyncio.run(main())
"""

UPGRADED = """
import asyncio
import json
import sys

from omni import EnhancedAutomagikHiveStreamer, TraceService, message_router

instance, webhook = json.loads(sys.argv[1]), json.loads(sys.argv[2])
recipient = webhook["data"]["key"]["remoteJid"]
told = {}


async def main():
    plain = TraceService.create_trace(webhook, "jokes")
    told["class_before"] = type(plain).__name__
    same = plain
    told["success"] = await message_router.route_message_smart(
        message_text="Conte uma piada", recipient=recipient, instance_config=instance, trace_context=plain
    )
    told["class_after"] = type(same).__name__
    told["chunks"] = same.get_streaming_summary()["total_chunks"]

    streamer = EnhancedAutomagikHiveStreamer(instance)
    by_agent = TraceService.create_streaming_trace(webhook, "jokes")
    told["agent"] = await streamer.stream_agent_to_whatsapp_with_traces(recipient, "joker", "Outra", by_agent)
    by_team = TraceService.create_streaming_trace(webhook, "jokes")
    told["team"] = await streamer.stream_team_to_whatsapp_with_traces(recipient, "jokers", "Mais uma", by_team)
    told["analytics"] = streamer.get_streaming_analytics()
    told["ids"] = [trace.trace_id for trace in (plain, by_agent, by_team)]


asyncio.run(main())
told["lengths"] = [TraceService.get_trace(trace_id).agent_response_length for trace_id in told["ids"]]
told["stages"] = sorted(row.stage for row in TraceService.get_trace_payloads(told["ids"][0]))
told["of_phone"] = len(TraceService.get_traces_by_phone("555197285829"))
print(json.dumps(told))
"""


@pytest.fixture
async def sandbox() -> AsyncIterator[tuple[Sandbox, dict[str, Any]]]:
    """A simulated Evolution and Hive, at lifelike speed, and the columns of an instance that uses them."""
    async with Sandbox(receipts=False) as opened, serve_on_loopback(opened.asgi) as base_url:
        script = Script(name="joker", title="Joker", steps=(Say(JOKE, 0.03, 8),), first_token_s=0.15)
        opened.hive.add_script("joker", script)
        opened.hive.add_script("jokers", script)
        values = sandbox_instance(base_url)
        del values["name"], values["default_agent"], values["channel_type"]
        yield opened, {**values, "name": "jokes", "agent_id": "joker"}
        # Typing signs are held for seconds; ended here, or leaving the server would wait for them.
        await opened.tasks.stop()


def database_in(folder: Path) -> dict[str, str]:
    """The only set-up there is: where the database lies. The folder need not exist."""
    return omni_settings(sqlite_database_path=str(folder / "traces.db"))


def as_the_predecessor_had_it(values: dict[str, Any]) -> dict[str, Any]:
    """The attributes of the predecessor's instance row; ``is_hive`` and ``streaming_enabled`` were properties of it."""
    return {**values, "id": 7, "is_hive": True, "streaming_enabled": True, "webhook_base64": True, "profile_name": None}


def in_hive_columns(values: dict[str, Any]) -> dict[str, Any]:
    """The older way, with the agent described in columns of its own."""
    kept = {name: value for name, value in values.items() if not name.startswith("agent_")}
    return {
        **kept,
        "agent_timeout": 60,
        "hive_enabled": True,
        "hive_api_url": values["agent_api_url"],
        "hive_api_key": values["agent_api_key"],
        "hive_agent_id": values["agent_id"],
        "hive_team_id": None,
        "hive_timeout": 30,
        "hive_stream_mode": True,
    }


DESCRIBED_BY = {
    "instance-config": ("InstanceConfig", dict),
    "old-attributes": ("SimpleNamespace", as_the_predecessor_had_it),
    "hive-columns": ("SimpleNamespace", in_hive_columns),
}


async def test_the_example_prints_what_the_agent_really_did_whatever_object_describes_the_instance(
    sandbox: tuple[Sandbox, dict[str, Any]], tmp_path: Path
) -> None:
    """F1, F5, F23: the example runs as it stands, with figures that agree with the agent's own clock."""
    simulated, values = sandbox

    async def run_example(name: str) -> Finished:
        described, rewrite = DESCRIBED_BY[name]
        script = tmp_path / f"{name}.py"
        script.write_text(EXAMPLE.format(described=described), encoding="utf-8")
        config = json.dumps(rewrite({**values, "name": name}))
        return await run_python(str(script), config, folder=tmp_path, settings=database_in(tmp_path / name))

    ended = dict(zip(DESCRIBED_BY, await asyncio.gather(*map(run_example, DESCRIBED_BY)), strict=True))

    for name, finished in ended.items():
        assert (finished.exit_code, finished.stderr) == (0, ""), name
        run = next(run for run in simulated.hive.runs if run.wire.session_id == f"{name}_{PHONE}")
        assert (run.message, run.user_id) == ("Conte uma piada", PHONE)
        check_printed(json.loads(finished.stdout), run)
    sent = [(sent.jid, sent.text) for sent in simulated.evolution.sent]
    assert sorted(sent) == sorted([(PHONE_JID, text) for text in JOKE_BUBBLES] * 3)

    printed = json.loads(ended["old-attributes"].stdout)
    settings = database_in(tmp_path / "old-attributes")
    shown = await run_omni("traces", "show", printed["trace_id"], "--json", folder=tmp_path, settings=settings)
    assert (shown.exit_code, shown.stderr) == (0, "")
    document = json.loads(shown.stdout)
    assert document["streaming_complete"]["final_content"] == JOKE
    assert document["timeline"]["total_streaming_time_ms"] == printed["total_streaming_duration_ms"]
    assert document["timeline"]["first_token_latency_ms"] == printed["first_token_latency_ms"]
    assert [message["text"] for message in document["delivery"]["messages"]] == JOKE_BUBBLES


def check_printed(printed: dict[str, Any], run: HiveRun) -> None:
    """The printed figures against the run as the agent server's own clock has it."""
    assert run.received_ns is not None
    assert run.first_text_ns is not None
    assert run.ended_ns is not None
    took_ms = (run.ended_ns - run.received_ns) / NS_PER_MS
    first_text_ms = (run.first_text_ns - run.received_ns) / NS_PER_MS
    assert took_ms - EARLY_MS <= printed["total_streaming_duration_ms"] <= took_ms + LATE_MS
    assert first_text_ms - EARLY_MS <= printed["first_token_latency_ms"] <= first_text_ms + LATE_MS
    assert {name: printed[name] for name in _FIGURES} == {
        "success": True,
        "status": "completed",
        "ending": "completed",
        "total_chunks": run.num_pieces,
        "dropped_chunks": 0,
        "total_content_length": 60,
        "events_captured": run.num_pieces,
        "messages_sent": 2,
        "messages_accepted": 2,
        "messages_failed": 0,
        "tools_used": 0,
        "total_streaming_time_ms": printed["total_streaming_duration_ms"],
        "first_to_final_ms": printed["total_streaming_duration_ms"] - printed["first_token_latency_ms"],
    }


_FIGURES = (
    "success",
    "status",
    "ending",
    "total_chunks",
    "dropped_chunks",
    "total_content_length",
    "events_captured",
    "messages_sent",
    "messages_accepted",
    "messages_failed",
    "tools_used",
    "total_streaming_time_ms",
    "first_to_final_ms",
)


async def test_a_plain_context_is_upgraded_in_place_and_the_old_streamer_streams_agents_and_teams(
    sandbox: tuple[Sandbox, dict[str, Any]], tmp_path: Path
) -> None:
    """F1, F2, F39: the context a webhook makes streams, under its own id; the streamer's name and methods are there."""
    simulated, values = sandbox
    webhook = {
        "event": "messages.upsert",
        "data": {
            "key": {"remoteJid": PHONE_JID, "fromMe": False, "id": "3EB0JOKE"},
            "pushName": "Ana",
            "message": {"conversation": "Conte uma piada"},
        },
    }
    script = tmp_path / "upgraded.py"
    script.write_text(UPGRADED, encoding="utf-8")

    settings = database_in(tmp_path / "upgraded")
    ended = await run_python(str(script), json.dumps(values), json.dumps(webhook), folder=tmp_path, settings=settings)

    assert (ended.exit_code, ended.stderr) == (0, "")
    printed = json.loads(ended.stdout)
    num_pieces = simulated.hive.runs[0].num_pieces
    assert len(set(printed.pop("ids"))) == 3
    assert printed == {
        "class_before": "TraceContext",
        "success": True,
        "class_after": "StreamingTraceContext",
        "chunks": num_pieces,
        "agent": True,
        "team": True,
        "analytics": {"active_streams": 0, "streams": [], "ended": {"completed": 3}},
        "lengths": [60, 60, 60],
        "stages": [
            "agent_request",
            "agent_response",
            "evolution_send",
            "evolution_send",
            "first_token",
            "streaming_chunks",
            "streaming_complete",
            "streaming_request",
            "streaming_start",
            "webhook_received",
        ],
        "of_phone": 3,
    }
    asked = [(run.wire.kind, run.wire.runner_id, run.message) for run in simulated.hive.runs]
    assert asked == [
        ("agent", "joker", "Conte uma piada"),
        ("agent", "joker", "Outra"),
        ("team", "jokers", "Mais uma"),
    ]
    assert [sent.text for sent in simulated.evolution.sent] == JOKE_BUBBLES * 3
