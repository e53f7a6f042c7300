"""What it costs to turn an agent's bytes into events, beside a loop that only looks at the same reads.

    python benchmarks/framing.py

CPU time per event of about 300 bytes, framed and decoded, with one event per read (an agent at work) and sixteen (a burst), for
the three framings Hive servers speak, and for text that holds braces, which takes the longer way. The bare loop runs in the same
rounds; values are medians. The last rows show that one long event costs per byte, not per read times byte.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence

from omni.agents.frames import ObjectFramer
from omni.agents.hive_events import HiveRun

Row = tuple[str, float, str, float | None]
"""Name, value, unit, budget (None where there is none)."""

NUM_EVENTS = 4_096
NUM_ROUNDS = 15
LONG_EVENT_BYTES = 10_000_000

_EVENT = {
    "created_at": 1795342665,
    "event": "RunContent",
    "agent_id": "wire",
    "agent_name": "wire",
    "run_id": "f8e38acc-dcb4-4df6-aeb9-6b25b539283f",
    "session_id": "5511999990000-agent_tool",
    "nested_depth": 0,
    "content": "consultar o estoque ",
    "workflow_agent": False,
    "content_type": "str",
    "reasoning_content": "",
}


def measure() -> list[Row]:
    """All rows, budgets included."""
    compact = json.dumps(_EVENT, separators=(",", ":"))
    braces = json.dumps(_EVENT | {"content": "um {json} no texto"}, separators=(",", ":"))
    pretty = json.dumps(_EVENT, indent=2)
    bodies: list[tuple[str, str, float | None]] = [
        ("event stream", f"event: RunContent\ndata: {compact}\n\n", 2.0),
        ("event stream, braces in text", f"event: RunContent\ndata: {braces}\n\n", None),
        ("pretty below data", f"event: RunContent\ndata: {pretty}\n\n", None),
        ("bare pretty objects", pretty, None),
    ]
    rows: list[Row] = []
    for name, text, budget in bodies:
        event = text.encode()
        for per_read in (1, 16):
            rows += _rows_of(f"{name}, {per_read} per read", [event * per_read] * (NUM_EVENTS // per_read), budget)
    rows += _long_event_rows()
    return rows


def _rows_of(name: str, reads: Sequence[bytes], budget: float | None) -> list[Row]:
    bare, framed, whole = [], [], []
    for _ in range(NUM_ROUNDS):
        bare.append(_cpu_us(_look, reads) / NUM_EVENTS)
        framed.append(_cpu_us(_frame, reads) / NUM_EVENTS)
        whole.append(_cpu_us(_interpret, reads) / NUM_EVENTS)
    loop, total = statistics.median(bare), statistics.median(whole)
    return [
        (f"{name}: framing", statistics.median(framed) - loop, "us/event", 1.0 if budget else None),
        (f"{name}: framing and decoding", total - loop, "us/event", budget),
        (f"{name}: times the bare loop", total / loop, "x", None),
    ]


def _long_event_rows() -> list[Row]:
    body = b'data: {"content":"' + b"x" * LONG_EVENT_BYTES + b'"}\n\n'
    rows: list[Row] = []
    for size in (65_536, 4_096):
        reads = [body[i : i + size] for i in range(0, len(body), size)]
        taken = statistics.median(_cpu_us(_frame_long, reads) for _ in range(3))
        rows.append((f"one event of 10 MB in reads of {size} bytes", taken / 1000, "ms", 200.0))
    return rows


def _look(reads: Sequence[bytes]) -> None:
    for data in reads:
        if not data:
            break


def _frame(reads: Sequence[bytes]) -> None:
    framer = ObjectFramer()
    for data in reads:
        framer.feed(data)


def _frame_long(reads: Sequence[bytes]) -> None:
    framer = ObjectFramer(max_event_bytes=2 * LONG_EVENT_BYTES)
    for data in reads:
        framer.feed(data)


def _interpret(reads: Sequence[bytes]) -> None:
    framer, run = ObjectFramer(), HiveRun()
    for data in reads:
        run.interpret(framer.feed(data), 0)


def _cpu_us(work: Callable[[Sequence[bytes]], None], reads: Sequence[bytes]) -> float:
    start = time.process_time_ns()
    work(reads)
    return (time.process_time_ns() - start) / 1000


if __name__ == "__main__":
    for row_name, value, unit, limit in measure():
        print(f"{row_name:60} {value:10.3f} {unit:9}" + (f" (budget {limit:g})" if limit is not None else ""))
