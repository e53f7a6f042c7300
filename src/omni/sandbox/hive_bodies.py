"""What Hive servers answer to a run without streaming, and their error bodies. Pure.

Older servers call a finished run ``RUNNING`` and count tokens in lists; newer ones say ``COMPLETED``, ``PAUSED`` or ``ERROR`` and count in
plain numbers. The newest answers a broken run with 200 and the provider's raw error as ``content``; the others with a bare 500.
"""

from typing import Any, Literal

from msgspec import Struct

from omni.sandbox.hive_wire import MODEL, PROVIDER, Json, RunWire, ToolUse, Usage

RunStatus = Literal["COMPLETED", "PAUSED", "ERROR"]

NOT_FOUND: Json = {"detail": "Not Found"}
_UNUSED_COUNTS = (
    "audio_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "prompt_tokens",
    "completion_tokens",
)


class RunRecord(Struct, frozen=True, kw_only=True):
    """A run that is over: the question, the answer or the error, and what it took."""

    wire: RunWire
    status: RunStatus
    message: str
    content: str
    user_id: str | None
    usage: Usage
    created_at_s: int
    tools: tuple[ToolUse, ...] = ()
    members: tuple["RunRecord", ...] = ()


def run_body(run: RunRecord) -> Json:
    """The JSON of a run as its server's generation writes it."""
    match run.wire.dialect:
        case "agno1":
            return _oldest(run)
        case "agno20":
            return _ids(run) | _content(run) | _model() | {"metrics": run.wire.metrics(run.usage)} | _rest(run)
        case "agno3":
            return _newest(run)


def missing_field(place: str, name: str) -> Json:
    """The 422 for an absent field."""
    return {"detail": [{"type": "missing", "loc": [place, name], "msg": "Field required", "input": None}]}


def bad_bool(name: str, value: str) -> Json:
    """The 422 for a flag that is neither true nor false."""
    msg = "Input should be a valid boolean, unable to interpret input"
    return {"detail": [{"type": "bool_parsing", "loc": ["body", name], "msg": msg, "input": value}]}


def _oldest(run: RunRecord) -> Json:
    counts: Json = {
        "input_tokens": [run.usage.input_tokens],
        "output_tokens": [run.usage.output_tokens],
        "total_tokens": [run.usage.total_tokens],
    }
    counts |= {name: [0] for name in _UNUSED_COUNTS} | {"time": [run.usage.duration_s]}
    body = _content(run) | {"metrics": counts} | _model() | _members(run) | _ids(run)
    if run.wire.parent is not None:
        body["team_session_id"] = run.wire.session_id
    if run.tools:
        body["formatted_tool_calls"] = [_formatted(tool) for tool in run.tools]
    status = "PAUSED" if run.status == "PAUSED" else "RUNNING"
    body |= {"created_at": run.created_at_s, "status": status, "messages": _messages(run, with_ids=False)}
    return body if run.wire.parent is not None else body | _tools(run)


def _newest(run: RunRecord) -> Json:
    body = _ids(run)
    if run.wire.parent is not None:
        body["parent_run_id"] = run.wire.parent
    body |= {"user_id": run.user_id} | _content(run) | _model()
    counted = {"duration": run.usage.duration_s} if run.status == "ERROR" else run.wire.metrics(run.usage)
    metrics = {"metrics": counted}
    if run.wire.kind == "team":
        body |= {"created_at": run.created_at_s} | metrics | {"status": run.status}
    else:
        body |= {"session_state": {}, "created_at": run.created_at_s, "status": run.status} | metrics
    body |= {"messages": _messages(run, with_ids=True)} | _members(run)
    if run.status != "ERROR":
        body |= _tools(run)
    if run.status == "PAUSED":
        asked = [tool for tool in run.tools if tool.needs_confirmation]
        body["requirements"] = [
            run.wire.requirement(run.created_at_s, tool, requirement_id=f"{run.wire.run_id}-{tool.call_id}")
            for tool in asked
        ]
    return body | {"input": {"input_content": run.message}}


def _rest(run: RunRecord) -> Json:
    body = {"created_at": run.created_at_s, "status": run.status, "messages": _messages(run, with_ids=False)}
    return body | _tools(run) | _members(run)


def _ids(run: RunRecord) -> Json:
    wire = run.wire
    return {
        "run_id": wire.run_id,
        f"{wire.kind}_id": wire.runner_id,
        f"{wire.kind}_name": wire.runner_id,
        "session_id": wire.session_id,
    }


def _content(run: RunRecord) -> Json:
    return {"content": run.content, "content_type": "str"} if run.content else {"content_type": "str"}


def _model() -> Json:
    return {"model": MODEL, "model_provider": PROVIDER}


def _tools(run: RunRecord) -> Json:
    return {"tools": [run.wire.tool(run.created_at_s, tool) for tool in run.tools]}


def _members(run: RunRecord) -> Json:
    return {"member_responses": [run_body(member) for member in run.members]} if run.members else {}


def _messages(run: RunRecord, *, with_ids: bool) -> list[Json]:
    said: list[tuple[str, str]] = [("user", run.message)]
    if run.status != "ERROR":
        said.append(("assistant", run.content))
    rest: dict[str, Any] = {"from_history": False, "stop_after_tool_call": False}
    return [
        ({"id": f"{run.wire.run_id}-{role}"} if with_ids else {})
        | {"content": text, **rest, "role": role, "created_at": run.created_at_s}
        for role, text in said
    ]


def _formatted(tool: ToolUse) -> str:
    return f"{tool.name}({', '.join(f'{name}={value}' for name, value in tool.args.items())})"
