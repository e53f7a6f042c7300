"""How Hive servers of three generations write a run: events as data and their bytes. Pure: the caller brings ids and times.

``agno1`` (Hive 0.1) glues pretty-printed JSON objects together with no framing at all; ``agno20`` puts pretty-printed JSON under one
``data:``; ``agno3`` is proper server-sent events. The first two escape everything outside ASCII. Field names and their order follow
recorded streams, and the contract test compares them event by event.
"""

import json
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import Struct

Dialect = Literal["agno1", "agno20", "agno3"]
RunnerKind = Literal["agent", "team"]
Json = dict[str, Any]

MODEL = "scripted-1"
PROVIDER = "Sandbox"


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one run, and the seconds it took; no ``first_token_s`` when no text came."""

    input_tokens: int
    output_tokens: int
    first_token_s: float | None
    duration_s: float

    @property
    def total_tokens(self) -> int:
        """Both directions together."""
        return self.input_tokens + self.output_tokens


class ToolUse(Struct, frozen=True, kw_only=True):
    """One call of a tool; ``result`` is None while it runs."""

    call_id: str
    name: str
    args: Json
    started_s: float
    ended_s: float | None = None
    result: str | None = None
    child_run_id: str | None = None
    needs_confirmation: bool = False


class RunWire(Struct, frozen=True, kw_only=True):
    """Writes the events of one run. ``parent`` is the team's or agent's run a member works for."""

    dialect: Dialect
    kind: RunnerKind
    runner_id: str
    run_id: str
    session_id: str
    parent: str | None = None

    def started(self, now_s: int) -> Json:
        """The first event of a run."""
        return self._event("RunStarted", now_s) | {"model": MODEL, "model_provider": PROVIDER}

    def content(self, now_s: int, text: str) -> Json:
        """One piece of the answer."""
        if self.dialect == "agno1":
            return self._event("RunResponseContent", now_s) | {"content": text, "content_type": "str", "thinking": ""}
        body = self._event("RunContent", now_s) | {"content": text}
        if self.dialect == "agno3" and self.kind == "agent":
            body["workflow_agent"] = False
        return body | {"content_type": "str", "reasoning_content": ""}

    def content_completed(self, now_s: int) -> list[Json]:
        """The text is over; only the newest generation says so."""
        return [self._event("RunContentCompleted", now_s)] if self.dialect == "agno3" else []

    def model_started(self, now_s: int) -> list[Json]:
        """A model call began; only the newest generation says so."""
        if self.dialect != "agno3":
            return []
        return [self._event("ModelRequestStarted", now_s) | {"model": MODEL, "model_provider": PROVIDER}]

    def model_completed(self, now_s: int, usage: Usage) -> list[Json]:
        """A model call ended; only the newest generation says so."""
        if self.dialect != "agno3":
            return []
        body = self._event("ModelRequestCompleted", now_s) | {"model": MODEL, "model_provider": PROVIDER}
        body |= {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        }
        if usage.first_token_s is not None:
            body["time_to_first_token"] = usage.first_token_s
        return [body | {"reasoning_tokens": 0, "cache_read_tokens": 0, "cache_write_tokens": 0}]

    def tool_started(self, now_s: int, tool: ToolUse) -> Json:
        """A tool was called."""
        return self._event("ToolCallStarted", now_s) | {"tool": self.tool(now_s, tool)}

    def tool_completed(self, now_s: int, tool: ToolUse) -> Json:
        """A tool returned. ``content`` is a log line, not part of the answer."""
        took_s = (tool.ended_s or tool.started_s) - tool.started_s
        args = ", ".join(f"{name}={value}" for name, value in tool.args.items())
        line = f"{tool.name}({args}) completed in {took_s:.4f}s." + (" " if self.dialect == "agno3" else "")
        return self._event("ToolCallCompleted", now_s) | {"content": line, "tool": self.tool(now_s, tool)}

    def completed(self, now_s: int, text: str, usage: Usage, *, members: list[Json] | None = None) -> Json:
        """The end of a run with its whole text; an empty answer has no ``content`` at all."""
        body = self._event("RunCompleted", now_s)
        if text:
            body["content"] = text
        body["content_type"] = "str"
        if self.dialect == "agno3" and self.kind == "agent":
            body["session_state"] = {}
        if members:
            body["member_responses"] = members
        return body if self.dialect == "agno1" else body | {"metrics": self.metrics(usage)}

    def error(self, now_s: int, message: str) -> Json:
        """The run failed. Before the newest generation this event names neither the run nor who ran."""
        if self.dialect == "agno3":
            return self._event("RunError", now_s) | {"content": message, "error_type": "model_provider_error"}
        owner = {"team_id": "", "team_name": ""} if self.kind == "team" else {"agent_id": "", "agent_name": ""}
        return {"created_at": now_s, "event": self._name("RunError")} | owner | {"content": message}

    def paused(self, now_s: int, text: str, tool: ToolUse, *, requirement_id: str) -> Json:
        """The run waits for a person to confirm a tool; the stream ends with this."""
        body = self._event("RunPaused", now_s) | {"content": text, "tools": [self.tool(now_s, tool)]}
        if self.dialect == "agno3":
            body["requirements"] = [self.requirement(now_s, tool, requirement_id=requirement_id)]
        return body

    def requirement(self, now_s: int, tool: ToolUse, *, requirement_id: str) -> Json:
        """What a person has to decide, as the newest generation lists it beside the tool."""
        since = datetime.fromtimestamp(now_s, UTC).isoformat()
        return {"id": requirement_id, "created_at": since, "tool_execution": self.tool(now_s, tool)}

    def cancelled(self, now_s: int, text: str) -> Json:
        """The run was cancelled from outside."""
        partial = {"content": text} if self.dialect == "agno3" else {}
        return self._event("RunCancelled", now_s) | partial | {"reason": f"Run {self.run_id} was cancelled"}

    def metrics(self, usage: Usage) -> Json:
        """Token counts as the terminal event carries them."""
        counts: Json = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        }
        if self.dialect == "agno20":
            return counts | {"duration": usage.duration_s}
        model = counts | {"id": MODEL, "provider": PROVIDER}
        return counts | {
            "time_to_first_token": usage.duration_s if usage.first_token_s is None else usage.first_token_s,
            "duration": usage.duration_s,
            "details": {"model": [model]},
        }

    def tool(self, now_s: int, tool: ToolUse) -> Json:
        """A tool as events and bodies describe it."""
        is_new = self.dialect == "agno3"
        body: Json = {
            "tool_call_id": tool.call_id,
            "tool_name": tool.name,
            "tool_args": tool.args,
            "tool_call_error": None if tool.result is None else False,
            "result": tool.result,
            "metrics": self._tool_metrics(tool),
        }
        if is_new:
            body["child_run_id"] = tool.child_run_id
        body |= {
            "stop_after_tool_call": False,
            "created_at": now_s,
            "requires_confirmation": True if tool.needs_confirmation else None,
            "confirmed": None,
            "confirmation_note": None,
            "requires_user_input": None,
            "user_input_schema": None,
        }
        if is_new:
            body["user_feedback_schema"] = None
        body |= {"answered": None, "external_execution_required": None}
        if is_new:
            rest = ("external_execution_silent", "approval_type", "approval_id", "parent_tool_call_id")
            body |= dict.fromkeys(rest)
        return body

    def _tool_metrics(self, tool: ToolUse) -> Json | None:
        if tool.ended_s is None:
            return None
        took_s = tool.ended_s - tool.started_s
        match self.dialect:
            case "agno1":
                return {"time": took_s}
            case "agno20":
                return {"duration": took_s}
            case "agno3":
                return {"start_time": tool.started_s, "end_time": tool.ended_s, "duration": took_s}

    def _event(self, name: str, now_s: int) -> Json:
        body: Json = {"created_at": now_s, "event": self._name(name)}
        body |= {f"{self.kind}_id": self.runner_id, f"{self.kind}_name": self.runner_id, "run_id": self.run_id}
        if self.dialect == "agno3" and self.parent is not None:
            body["parent_run_id"] = self.parent
        body["session_id"] = self.session_id
        if self.dialect == "agno1" and self.parent is not None:
            body["team_session_id"] = self.session_id
        if self.dialect == "agno3":
            body["nested_depth"] = 0
        return body

    def _name(self, name: str) -> str:
        return f"Team{name}" if self.kind == "team" else name


def encode(event: Json, *, dialect: Dialect) -> bytes:
    """The bytes of one event, framing included."""
    match dialect:
        case "agno1":
            return json.dumps(event, indent=2).encode()
        case "agno20":
            return f"event: {event['event']}\ndata: {json.dumps(event, indent=2)}\n\n".encode()
        case "agno3":
            compact = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
            return f"event: {event['event']}\ndata: {compact}\n\n".encode()
