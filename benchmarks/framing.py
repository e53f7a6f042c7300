"""What it costs to turn an agent's bytes into events, in memory, beside decoding alone what is framed already.

    python benchmarks/framing.py

CPU time per event of about 300 bytes, framed and decoded, with one event per read (an agent at work) and sixteen (a burst), for
the three framings Hive servers speak, and for text that holds braces, which takes the longer way. The limit is a typed decoder that
takes three fields of the same objects, handed to it one by one; it is measured in the same rounds. Values are medians, so
are the ratios' parts. The last rows show that one long event costs per byte, not per read times byte. ``framing_loopback``
does the same over a socket.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from msgspec import Struct

from omni.agents.frames import ObjectFramer
from omni.agents.hive_events import HiveRun
from omni.model import TextDelta

Row = tuple[str, float, str, float | None]
"""Name, value, unit, budget (None where there is none)."""

NUM_EVENTS = 4_096
NUM_ROUNDS = 15
LONG_EVENT_BYTES = 10_000_000
READ_SIZES = (1, 16)
"""Events per read."""

FRAMING_BUDGET_US = 1.0
WHOLE_BUDGET_US = 2.0

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


class BareEvent(Struct, gc=False):
    """The least an event is read for."""

    event: str
    run_id: str
    content: str | None = None


decode_bare = msgspec.json.Decoder(BareEvent).decode


def measure() -> list[Row]:
    """All rows, budgets included."""
    compact = json.dumps(_EVENT, separators=(",", ":"))
    braces = json.dumps(_EVENT | {"content": "um {json} no texto"}, separators=(",", ":"))
    pretty = json.dumps(_EVENT, indent=2)
    bodies = [
        ("event stream", f"event: RunContent\ndata: {compact}\n\n", True),
        ("event stream, braces in text", f"event: RunContent\ndata: {braces}\n\n", False),
        ("pretty below data", f"event: RunContent\ndata: {pretty}\n\n", False),
        ("bare pretty objects", pretty, False),
    ]
    rows: list[Row] = []
    for name, text, has_budget in bodies:
        rows += _rows_of(name, text.encode(), has_budget)
    return rows + _long_event_rows()


def _rows_of(name: str, event: bytes, has_budget: bool) -> Iterator[Row]:
    reads_by_size = {size: [event * size] * (NUM_EVENTS // size) for size in READ_SIZES}
    (frame,) = ObjectFramer().feed(event)
    _check(reads_by_size.values(), decode_bare(frame).content)
    frames = [frame] * NUM_EVENTS
    bare: list[float] = []
    framed: dict[int, list[float]] = {size: [] for size in READ_SIZES}
    whole: dict[int, list[float]] = {size: [] for size in READ_SIZES}
    for _ in range(NUM_ROUNDS):
        bare.append(_cpu_us(_decode, frames) / NUM_EVENTS)
        for size, reads in reads_by_size.items():
            framed[size].append(_cpu_us(_frame, reads) / NUM_EVENTS)
            whole[size].append(_cpu_us(_interpret, reads) / NUM_EVENTS)
    limit = statistics.median(bare)
    yield f"{name}: limit, decoding alone", limit, "us/event", None
    for size in READ_SIZES:
        ours = statistics.median(whole[size])
        what = f"{name}, {size} per read"
        yield f"{what}: framing", statistics.median(framed[size]), "us/event", FRAMING_BUDGET_US if has_budget else None
        yield f"{what}: framing and decoding", ours, "us/event", WHOLE_BUDGET_US if has_budget else None
        yield f"{what}: framing and decoding / limit", ours / limit, "x", None


def _check(bodies: Iterable[Sequence[bytes]], content: str | None) -> None:
    """Raises RuntimeError unless every event of every body comes out with its text: what is timed has to be the work."""
    for reads in bodies:
        framer, run = ObjectFramer(), HiveRun()
        texts = [e.text for data in reads for e in run.interpret(framer.feed(data), 0) if isinstance(e, TextDelta)]
        if texts != [content] * NUM_EVENTS:
            raise RuntimeError("the events that came out are not those that went in")


def _long_event_rows() -> list[Row]:
    body = b'data: {"content":"' + b"x" * LONG_EVENT_BYTES + b'"}\n\n'
    rows: list[Row] = []
    for size in (65_536, 4_096):
        reads = [body[i : i + size] for i in range(0, len(body), size)]
        taken = statistics.median(_cpu_us(_frame_long, reads) for _ in range(3))
        rows.append((f"one event of 10 MB in reads of {size} bytes", taken / 1000, "ms", 200.0))
    return rows


def _decode(frames: Sequence[bytes]) -> None:
    for frame in frames:
        decode_bare(frame)


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
        print(f"{row_name:62} {value:10.3f} {unit:9}" + (f" (budget {limit:g})" if limit is not None else ""))
