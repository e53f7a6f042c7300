"""Every recorded answer of a real server is read right: as it was read then, byte by byte, and at random cuts."""

import base64
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omni.agents.frames import ObjectFramer
from omni.agents.hive_events import HiveRun
from omni.agents.hive_replies import interpret_reply
from omni.model import RunEnded, RunStarted, TextDelta, ToolCall

CAPTURES = Path(__file__).parents[2] / "captures" / "hive"
INDEX = json.loads((CAPTURES / "index.json").read_text(encoding="utf-8"))
BIG = "início " + "Açúcar 🍬 e café ☕. " * 8000 + " fim"
SMALL_BYTES = 50_000

STREAMS = {c["name"]: c for c in INDEX["captures"] if c["expected"]["kind"] != "json"}
REPLIES = {c["name"]: c for c in INDEX["captures"] if c["expected"]["kind"] == "json" and c["status"] == 200}
SMALL_STREAMS = [name for name, capture in STREAMS.items() if capture["bytes"] < SMALL_BYTES]


def read_pieces(name):
    lines = (CAPTURES / f"{name}.jsonl").read_text(encoding="ascii").splitlines()
    return [base64.b64decode(json.loads(line)["b64"]) for line in lines]


def events_of(pieces, mono_ns=0):
    """What a client yields for a body read in these pieces; the clock stands still, so that cuts can be compared."""
    framer, run, events = ObjectFramer(), HiveRun(), []
    for piece in pieces:
        events += run.interpret(framer.feed(piece), mono_ns)
        if run.is_ended:
            return events
    framer.finish()
    return [*events, run.finish(mono_ns, saw_garbage=framer.saw_garbage)]


def story_of(events):
    """The facts of a run that the index knows."""
    end = events[-1]
    assert isinstance(end, RunEnded)
    deltas = [event for event in events if isinstance(event, TextDelta)]
    tools = [event for event in events if isinstance(event, ToolCall)]
    return {
        "text": "".join(delta.text for delta in deltas),
        "deltas": len(deltas),
        "ending": end.ending,
        "error_message": end.error_message,
        "has_usage": end.usage is not None,
        "tools_started": sum(tool.phase == "started" for tool in tools),
        "tools_completed": sum(tool.phase == "completed" for tool in tools),
        "runs_started": sum(isinstance(event, RunStarted) for event in events),
        "ends": sum(isinstance(event, RunEnded) for event in events),
        "event_type": end.event_type,
    }


def expected_story(capture):
    expected = capture["expected"]
    num_after = len(expected["events_after_terminal"])
    names = expected["events"][:-num_after] if num_after else expected["events"]
    ending = expected["outcome"].split(":")[0]
    # The root's own model requests stand in for metrics where the end carries none.
    root_requests = [name for name in names if name in {"ModelRequestCompleted", "TeamModelRequestCompleted"}]
    return {
        "text": BIG if expected["text_name"] == "BIG" else expected["text"],
        # A workflow streams no text of its own; its answer comes with its end, in one piece.
        "deltas": 1 if expected["text_name"] == "WF" else expected["content_events"],
        "ending": ending,
        "error_message": expected["terminal_message"],
        "has_usage": expected["usage_in_terminal"] or bool(root_requests),
        "tools_started": sum(name.endswith("ToolCallStarted") for name in names),
        "tools_completed": sum(name.endswith("ToolCallCompleted") for name in names),
        "runs_started": 1,
        "ends": 1,
        "event_type": None if ending == "incomplete" else names[-1],
    }


@pytest.mark.parametrize("name", STREAMS)
def test_capture_tells_its_story_at_the_reads_it_was_recorded_with(name):
    assert story_of(events_of(read_pieces(name))) == expected_story(STREAMS[name])


@pytest.mark.parametrize("name", STREAMS)
def test_capture_ends_with_the_text_its_deltas_add_up_to(name):
    expected = STREAMS[name]["expected"]
    events = events_of(read_pieces(name))
    content = events[-1].content
    if expected["final_content_equals_deltas"]:
        assert (content or "") == "".join(e.text for e in events if isinstance(e, TextDelta))
    elif events[-1].ending not in ("completed", "paused"):
        assert content is None


@pytest.mark.parametrize("name", SMALL_STREAMS)
def test_capture_gives_the_same_events_byte_by_byte(name):
    pieces = read_pieces(name)
    body = b"".join(pieces)
    assert events_of([body[i : i + 1] for i in range(len(body))]) == events_of(pieces) == events_of([body])


@pytest.mark.parametrize("name", STREAMS)
@given(data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_capture_gives_the_same_events_at_random_cuts(name, data):
    body = b"".join(read_pieces(name))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=30)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert events_of(pieces) == events_of([body])


REPLY_STORIES = {
    "agno1_agent_nostream": ("TEXT", "completed", (11, 7, 18), 0),
    "agno1_agent_nostream_paused": ("PAUSE", "paused", (11, 7, 18), 0),
    "agno1_agent_nostream_tool": ("TOOL", "completed", (23, 14, 37), 1),
    "agno1_team_nostream": ("TEAM", "completed", (23, 14, 37), 1),
    "agno3_agent_nostream": ("TEXT", "completed", (11, 7, 18), 0),
    "agno3_agent_nostream_crash": ("EMPTY", "error", None, 0),
    "agno3_agent_nostream_error": ("EMPTY", "error", None, 0),
    "agno3_agent_nostream_paused": ("PAUSE", "paused", (11, 7, 18), 0),
    "agno3_agent_nostream_tool": ("TOOL", "completed", (23, 14, 37), 1),
    "agno3_team_nostream": ("TEAM", "completed", (23, 14, 37), 1),
}


def test_every_recorded_reply_is_checked():
    assert set(REPLY_STORIES) == set(REPLIES)


@pytest.mark.parametrize("name", REPLY_STORIES)
def test_reply_tells_its_story(name):
    """The provider's error text of a failed run is the operator's, never the answer."""
    text_name, ending, counts, num_tools = REPLY_STORIES[name]
    text = INDEX["texts"][text_name]
    body = b"".join(read_pieces(name))
    facts = msgspec.json.decode(body)
    *events, end = interpret_reply(body, 5)
    is_error = ending == "error"
    assert end == RunEnded(
        mono_ns=5,
        ending=ending,
        event_type="RunReply",
        content=None if is_error else text,
        error_message=REPLIES[name]["expected"]["text"] if is_error else None,
        usage=end.usage,
        run_id=facts["run_id"],
        session_id=facts["session_id"],
    )
    usage = end.usage
    assert (usage and (usage.input_tokens, usage.output_tokens, usage.total_tokens)) == counts
    assert events[0] == RunStarted(
        mono_ns=5, run_id=facts["run_id"], session_id=facts["session_id"], model=facts["model"]
    )
    tools = [event.phase for event in events if isinstance(event, ToolCall)]
    assert tools == ["started", "completed"] * num_tools
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert deltas == ([] if is_error else [TextDelta(5, text, "RunReply")])


@pytest.mark.parametrize("name", REPLY_STORIES)
def test_reply_where_a_stream_was_expected_is_read_the_same(name):
    body = b"".join(read_pieces(name))
    assert events_of([body]) == list(interpret_reply(body, 0))
    assert events_of([body[i : i + 1] for i in range(len(body))]) == list(interpret_reply(body, 0))
