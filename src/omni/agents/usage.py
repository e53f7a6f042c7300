"""Token counts as agent servers write them, in the four shapes that were seen.

Numbers, one list entry per model request (Agno 1.x), nothing at all, and for a workflow one set of numbers per step. What a server does not
say stays unknown: an unknown count is None and never 0. No I/O.
"""

from typing import Any

from omni.model import Usage


def usage_of(metrics: object) -> Usage | None:
    """Token counts from a ``metrics`` object, or from the fields of a model request; None when it names none."""
    if not isinstance(metrics, dict):
        return None
    usage = Usage(
        input_tokens=_count(metrics.get("input_tokens")),
        output_tokens=_count(metrics.get("output_tokens")),
        total_tokens=_count(metrics.get("total_tokens")),
    )
    return _usage_of_steps(metrics.get("steps")) if usage == Usage() else usage


def add_usage(first: Usage | None, second: Usage | None) -> Usage | None:
    """Both counts together; what only one of them knows is taken from it."""
    if first is None or second is None:
        return first or second
    return Usage(
        input_tokens=_add(first.input_tokens, second.input_tokens),
        output_tokens=_add(first.output_tokens, second.output_tokens),
        total_tokens=_add(first.total_tokens, second.total_tokens),
    )


def _usage_of_steps(steps: Any) -> Usage | None:
    total: Usage | None = None
    for step in steps.values() if isinstance(steps, dict) else ():
        total = add_usage(total, usage_of(step.get("metrics")) if isinstance(step, dict) else None)
    return total


def _count(value: object) -> int | None:
    counts = value if isinstance(value, list) else [value]
    whole = [count for count in counts if type(count) is int]
    return sum(whole) if whole else None


def _add(first: int | None, second: int | None) -> int | None:
    return second if first is None else first + (second or 0)
