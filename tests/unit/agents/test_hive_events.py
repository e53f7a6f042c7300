"""What the events of a Hive run mean: whose text is shown, which event ends the run, and what cannot disturb it."""

import json

import pytest

from omni.agents.hive_events import HiveRun
from omni.errors import AgentProtocolError
from omni.model import RunActivity, RunEnded, RunStarted, TextDelta, ToolCall, Usage

ROOT, MEMBER = "root-1", "member-1"


def frame(event=None, run_id=ROOT, **fields):
    named = {"event": event, "run_id": run_id} | fields
    return json.dumps({key: value for key, value in named.items() if value is not None}).encode()


def interpret(*frames, finish=False):
    run = HiveRun()
    events = run.interpret(frames, 7)
    if finish:
        events.append(run.finish(9, saw_garbage=False))
    return events


STARTED = frame("RunStarted", session_id="s-1", model="m-1")
STARTED_EVENT = RunStarted(mono_ns=7, run_id=ROOT, session_id="s-1", model="m-1")


def ended(ending="completed", event_type="RunCompleted", **facts):
    return RunEnded(mono_ns=7, ending=ending, event_type=event_type, **({"run_id": ROOT, "session_id": "s-1"} | facts))


@pytest.mark.parametrize("name", ["RunContent", "RunResponseContent", "TeamRunContent", "TeamRunResponseContent"])
def test_text_of_the_root_is_a_delta_under_every_name(name):
    assert interpret(STARTED, frame(name, content="a"), frame(name, content=" \n")) == [
        STARTED_EVENT,
        TextDelta(7, "a", name),
        TextDelta(7, " \n", name),
    ]


@pytest.mark.parametrize(
    "name", ["RunIntermediateContent", "ReasoningStep", "StepCompleted", "TeamTaskUpdated", "NewIn4"]
)
def test_other_text_is_activity(name):
    assert interpret(STARTED, frame(name, content="no answer")) == [STARTED_EVENT, RunActivity(7, name)]


def test_a_members_text_and_end_are_not_the_answers():
    assert interpret(
        frame("TeamRunStarted", session_id="s-1", model="m-1"),
        frame("RunStarted", MEMBER),
        frame("RunContent", MEMBER, content="inner"),
        frame("RunError", MEMBER, content="boom"),
        frame("RunCompleted", MEMBER, content="inner"),
        frame("TeamRunContent", content="outer"),
        frame("TeamRunCompleted", content="outer"),
    ) == [
        STARTED_EVENT,
        RunActivity(7, "RunStarted"),
        RunActivity(7, "RunContent"),
        RunActivity(7, "RunError"),
        RunActivity(7, "RunCompleted"),
        TextDelta(7, "outer", "TeamRunContent"),
        ended(event_type="TeamRunCompleted", content="outer"),
    ]


def test_tools_of_anyone_are_tool_calls_and_their_log_line_is_no_text():
    tool = {"tool_name": "get_stock", "tool_call_error": True}
    assert interpret(
        STARTED,
        frame("ToolCallStarted", tool={"tool_name": "get_stock", "tool_call_error": None}),
        frame("ToolCallCompleted", content="get_stock() completed in 0.2s.", tool=tool),
        frame("ToolCallError", tool=tool, error="x"),
        frame("TeamToolCallStarted", MEMBER, tool="odd"),
        frame("TeamToolCallCompleted", MEMBER),
    ) == [
        STARTED_EVENT,
        ToolCall(mono_ns=7, phase="started", name="get_stock"),
        ToolCall(mono_ns=7, phase="completed", name="get_stock", is_error=True),
        RunActivity(7, "ToolCallError"),
        ToolCall(mono_ns=7, phase="started", name=None),
        ToolCall(mono_ns=7, phase="completed", name=None),
    ]


@pytest.mark.parametrize("root", ["Run", "TeamRun", "Workflow"])
@pytest.mark.parametrize(
    ("suffix", "fields", "facts"),
    [
        ("Completed", {"content": "hi"}, {"ending": "completed", "content": "hi"}),
        ("Paused", {"content": "hi", "tools": []}, {"ending": "paused", "content": "hi"}),
        ("Error", {"content": "boom"}, {"ending": "error", "error_message": "boom"}),
        ("Error", {"error": {"code": 5}}, {"ending": "error", "error_message": '{"code": 5}'}),
        ("Cancelled", {"content": "hi more", "reason": "asked"}, {"ending": "cancelled", "error_message": "asked"}),
        ("Cancelled", {}, {"ending": "cancelled"}),
    ],
)
def test_every_root_has_four_ends(root, suffix, fields, facts):
    name = root + suffix
    events = interpret(STARTED, frame("RunContent", content="hi"), frame(name, **fields))
    assert events == [STARTED_EVENT, TextDelta(7, "hi", "RunContent"), ended(event_type=name, **facts)]


def test_an_error_without_run_id_is_the_roots():
    """Agno 1.x and 2.x leave run id and agent out of it."""
    assert interpret(STARTED, frame("RunError", None, agent_id="", content="boom")) == [
        STARTED_EVENT,
        ended("error", "RunError", error_message="boom"),
    ]


def test_the_error_event_of_a_queued_run_ends_it():
    assert interpret(STARTED, frame("error", None, error="no worker")) == [
        STARTED_EVENT,
        ended("error", "error", error_message="no worker"),
    ]


def test_the_first_end_wins_and_nothing_follows_it():
    """Agno 3.x reports a cancelled run completed a moment later."""
    run = HiveRun()
    frames = [STARTED, frame("RunCancelled", reason="asked"), frame("RunCompleted", content="x")]
    assert run.interpret(frames, 7)[-1] == ended("cancelled", "RunCancelled", error_message="asked")
    assert run.is_ended
    assert run.interpret([frame("RunContent", content="late")], 8) == []


@pytest.mark.parametrize(
    ("suffix", "is_answer"), [("Completed", True), ("Paused", True), ("Error", False), ("Cancelled", False)]
)
def test_an_end_brings_the_answer_when_no_delta_did(suffix, is_answer):
    name = f"Workflow{suffix}"
    events = interpret(STARTED, frame("RunContent", MEMBER, content="draft"), frame(name, content="final"))
    assert [event for event in events if isinstance(event, TextDelta)] == (
        [TextDelta(7, "final", name)] if is_answer else []
    )


def test_a_run_without_any_text_completes_without_text():
    assert interpret(STARTED, frame("RunCompleted", content="")) == [STARTED_EVENT, ended()]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"total": 4, "moeda": "é"}, '{"total": 4, "moeda": "é"}'),
        ([1, {"a": None}], '[1, {"a": null}]'),
        (0, "0"),
        (False, "false"),
    ],
)
def test_structured_content_is_shown_as_one_line_of_json(content, text):
    assert interpret(STARTED, frame("RunContent", content=content), frame("RunCompleted", content=content)) == [
        STARTED_EVENT,
        TextDelta(7, text, "RunContent"),
        ended(content=text),
    ]


@pytest.mark.parametrize("content", [None, ""])
def test_content_events_without_text_are_activity(content):
    """Deltas that carry reasoning only."""
    assert interpret(STARTED, frame("RunContent", content=content, reasoning_content="hm")) == [
        STARTED_EVENT,
        RunActivity(7, "RunContent"),
    ]


def test_the_first_event_that_names_a_run_starts_it_whatever_it_is():
    assert interpret(
        frame("subscribed", None), frame("catch_up", session_id=None), frame("RunContent", content="a")
    ) == [
        RunActivity(7, "subscribed"),
        RunStarted(mono_ns=7, run_id=ROOT),
        RunActivity(7, "catch_up"),
        TextDelta(7, "a", "RunContent"),
    ]


def test_a_first_event_with_text_starts_the_run_and_shows_the_text():
    assert interpret(frame("RunContent", content="a")) == [
        RunStarted(mono_ns=7, run_id=ROOT),
        TextDelta(7, "a", "RunContent"),
    ]


def test_a_stream_that_names_no_run_is_one_run():
    assert interpret(frame("RunContent", None, content="a"), frame("RunCompleted", None, content="a")) == [
        TextDelta(7, "a", "RunContent"),
        ended(content="a", run_id=None, session_id=None),
    ]


def test_text_without_run_id_belongs_to_the_root():
    assert interpret(STARTED, frame("RunContent", None, content="a"))[1:] == [TextDelta(7, "a", "RunContent")]


def test_session_is_remembered_from_whichever_event_names_it():
    events = interpret(frame("RunStarted"), frame("MemoryUpdateStarted", session_id="s-1"), frame("RunCompleted"))
    assert events[-1] == ended()


METRICS = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}


@pytest.mark.parametrize(
    ("metrics", "usage"),
    [
        (METRICS, Usage(input_tokens=11, output_tokens=7, total_tokens=18)),
        ({"input_tokens": [11, 12], "output_tokens": [7, None]}, Usage(input_tokens=23, output_tokens=7)),
        ({"input_tokens": 0, "output_tokens": None}, Usage(input_tokens=0)),
        (
            {"steps": {"a": {"metrics": METRICS}, "b": {"metrics": METRICS}, "c": None}},
            Usage(input_tokens=22, output_tokens=14, total_tokens=36),
        ),
        ({"duration": 0.5, "steps": "odd"}, None),
        ({"input_tokens": []}, None),
        ({"input_tokens": True, "output_tokens": "7"}, None),
        ("odd", None),
        (None, None),
    ],
)
def test_usage_has_several_shapes_and_unknown_is_none(metrics, usage):
    assert interpret(STARTED, frame("RunCompleted", metrics=metrics)) == [STARTED_EVENT, ended(usage=usage)]


def test_model_requests_of_the_root_stand_in_for_missing_metrics():
    requests = [frame("ModelRequestCompleted", **METRICS), frame("ModelRequestCompleted", input_tokens=1)]
    members = [frame("ModelRequestCompleted", MEMBER, **METRICS)]
    assert interpret(STARTED, *requests, *members, frame("RunPaused"))[-1] == ended(
        "paused", "RunPaused", usage=Usage(input_tokens=12, output_tokens=7, total_tokens=18)
    )
    assert interpret(STARTED, *requests, frame("RunCompleted", metrics=METRICS))[-1] == ended(
        usage=Usage(input_tokens=11, output_tokens=7, total_tokens=18)
    )


@pytest.mark.parametrize(
    "junk",
    [
        b"{not json}",
        b'{"event":"RunContent","content":"cut',
        b'{"event":5,"content":"x"}',
        b'{"event":"RunContent","run_id":"root-1","content":"\xff"}',
        b"{}",
        b'{"detail":"x"}',
        b'{"content":"no event behind an event"}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_an_unreadable_object_is_counted_and_the_stream_goes_on(junk):
    run = HiveRun()
    assert run.interpret([STARTED, junk, frame("RunContent", content="a")], 7) == [
        STARTED_EVENT,
        RunActivity(7, "unreadable"),
        TextDelta(7, "a", "RunContent"),
    ]
    assert run.num_unreadable == 1


def test_not_a_number_in_an_agents_data_does_not_cost_the_end():
    """Python writes NaN into what it calls JSON."""
    done = b'{"event":"RunCompleted","run_id":"root-1","content":"a","session_state":{"x":NaN},"metrics":{"input_tokens":3}}'
    assert interpret(STARTED, done)[-1] == ended(content="a", usage=Usage(input_tokens=3))


def test_bytes_that_are_no_text_in_another_field_do_not_cost_the_end():
    done = b'{"event":"RunCompleted","run_id":"root-1","content":"a","session_id":"\xff"}'
    assert interpret(STARTED, done)[-1] == ended(content="a")


def test_odd_types_are_tolerated():
    odd = frame("RunCompleted", run_id=ROOT, content="a", session_id=5, model=[1], metrics=[1])
    assert interpret(frame("RunStarted", 5, session_id=["x"]), STARTED, odd) == [
        RunActivity(7, "RunStarted"),
        STARTED_EVENT,
        TextDelta(7, "a", "RunCompleted"),
        ended(content="a"),
    ]


def test_a_document_where_events_were_expected_is_the_whole_run():
    document = json.dumps({"run_id": ROOT, "session_id": "s-1", "content": "a", "status": "RUNNING"}).encode()
    run = HiveRun()
    assert run.interpret([document, frame("RunContent", content="late")], 7) == [
        RunStarted(mono_ns=7, run_id=ROOT, session_id="s-1"),
        TextDelta(7, "a", "RunReply"),
        ended(event_type="RunReply", content="a"),
    ]
    assert run.is_ended


def test_a_document_behind_text_is_not_the_run():
    """Even where no event names a run."""
    assert interpret(frame("RunContent", None, content="a"), b'{"content":"again"}') == [
        TextDelta(7, "a", "RunContent"),
        RunActivity(7, "unreadable"),
    ]


def test_a_body_without_end_is_incomplete_and_keeps_what_is_known():
    events = interpret(STARTED, frame("ModelRequestCompleted", **METRICS), finish=True)
    assert events[-1] == RunEnded(
        mono_ns=9,
        ending="incomplete",
        usage=Usage(input_tokens=11, output_tokens=7, total_tokens=18),
        run_id=ROOT,
        session_id="s-1",
    )


@pytest.mark.parametrize(
    ("frames", "saw_garbage", "is_error"),
    [
        ([], False, False),
        ([], True, True),
        ([b"{not json}"], False, True),
        ([b'{"status":"ok"}'], False, True),
        ([b"{not json}", STARTED], True, False),
        ([frame("RunContent", None, content="a")], True, False),
    ],
)
def test_a_body_that_never_spoke_of_a_run_is_no_stream(frames, saw_garbage, is_error):
    run = HiveRun()
    run.interpret(frames, 7)
    if is_error:
        with pytest.raises(AgentProtocolError):
            run.finish(9, saw_garbage=saw_garbage)
    else:
        assert run.finish(9, saw_garbage=saw_garbage).ending == "incomplete"


def test_an_emoji_cut_into_two_deltas_arrives_whole():
    """Some models' tokens end inside a surrogate pair; each half is no character by itself, and neither may be lost."""
    run = HiveRun()
    frames = [
        rb'{"event":"RunStarted","run_id":"r"}',
        rb'{"event":"RunContent","run_id":"r","content":"oi \ud83d"}',
        rb'{"event":"RunContent","run_id":"r","content":"\ude00!"}',
        rb'{"event":"RunContent","run_id":"r","content":"\ud83d"}',
        rb'{"event":"RunContent","run_id":"r","content":" orphan"}',
    ]
    texts = [event.text for event in run.interpret(frames, 1) if isinstance(event, TextDelta)]
    assert "".join(texts) == "oi 😀!\ufffd orphan"
