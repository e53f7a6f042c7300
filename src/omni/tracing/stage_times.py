"""Where a turn's time went: its stages, which add up. Pure.

    queue + agent wait + stream + delivery tail + unaccounted = turn total

Each stage begins where the one before it ended. None is negative and none reaches behind the turn's end, also when the moments come from two
processes whose clocks do not agree, or when something was still sent after the turn had been closed.
"""

from itertools import pairwise

from msgspec import Struct

from omni.clock import exact_ms


class StageTimes(Struct, frozen=True, kw_only=True):
    """Where the turn's time went, in milliseconds with three decimals; None where an end of the stage is unknown.

    ``queue_ms`` received to request written; ``agent_wait_ms`` request to first visible text (to the end when there was none);
    ``stream_ms`` first text to the terminal event; ``delivery_tail_ms`` terminal event to the last message's outcome;
    ``unaccounted_ms`` what is left of ``turn_total_ms``.
    """

    queue_ms: float | None
    agent_wait_ms: float | None
    stream_ms: float | None
    delivery_tail_ms: float | None
    unaccounted_ms: float | None
    turn_total_ms: float | None


def stage_times(
    *,
    request_ns: int | None,
    first_token_ns: int | None,
    agent_end_ns: int | None,
    last_outcome_ns: int | None,
    completed_ns: int | None,
) -> StageTimes:
    """The stages from the moments between them, in nanoseconds from the turn's start; None where a moment was not seen."""
    wait_end_ns = agent_end_ns if first_token_ns is None else first_token_ns
    parts: list[int | None] = []
    latest_ns = 0
    for begin_ns, end_ns in pairwise((0, request_ns, wait_end_ns, agent_end_ns, last_outcome_ns)):
        if begin_ns is None or end_ns is None:
            parts.append(None)
            continue
        # The last message may be known before the agent's terminal event: then there was no tail.
        start_ns = max(_within(begin_ns, completed_ns), latest_ns)
        latest_ns = max(_within(end_ns, completed_ns), start_ns)
        parts.append(latest_ns - start_ns)
    rest_ns = None if completed_ns is None else completed_ns - sum(part for part in parts if part is not None)
    queue, wait, stream, tail = (exact_ms(part) for part in parts)
    return StageTimes(
        queue_ms=queue,
        agent_wait_ms=wait,
        stream_ms=stream,
        delivery_tail_ms=tail,
        unaccounted_ms=exact_ms(rest_ns),
        turn_total_ms=exact_ms(completed_ns),
    )


def _within(moment_ns: int, completed_ns: int | None) -> int:
    return moment_ns if completed_ns is None else min(moment_ns, completed_ns)
