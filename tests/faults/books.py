"""The books a run ends with, as plain data: what was posted, asked, written, accepted, and what Omni kept. The checker reads nothing else."""

from msgspec import Struct
from tests.faults.agent import Asked
from tests.faults.carrier import Posted
from tests.faults.plans import Mark, RunPlan

OPEN = None
"""The ending of a trace nobody has closed."""


class Accepted(Struct, frozen=True, kw_only=True):
    """One message Evolution sent, in the order it did; ``chat`` by its place in the run. Times are monotonic nanoseconds."""

    chat: int
    text: str
    key_id: str
    received_ns: int
    accepted_ns: int


class KeptMessage(Struct, frozen=True, kw_only=True):
    """One outgoing message as its trace tells it; ``start`` and ``end`` are its range in the answer."""

    index: int
    text: str
    status: str
    key_id: str | None
    start: int | None
    end: int | None
    is_notice: bool = False
    error_kind: str | None = None


class KeptTrace(Struct, frozen=True, kw_only=True):
    """One trace. ``contents`` are the texts of the stages that close a stream: one, or none when no stream was closed."""

    trace_id: str
    message_id: str
    ending: str | None
    chunks: tuple[str, ...]
    contents: tuple[str, ...]
    messages: tuple[KeptMessage, ...]
    num_dropped: int = 0


class KeptInbound(Struct, frozen=True, kw_only=True):
    """One row of the inbox."""

    message_id: str
    trace_id: str
    state: str


class KeptOutbound(Struct, frozen=True, kw_only=True):
    """One row of the outbox; ``trace_id`` is that of the answer it belongs to."""

    trace_id: str
    index: int
    state: str
    key_id: str | None
    text_sha256: str
    is_notice: bool


class Kept(Struct, frozen=True, kw_only=True):
    """Everything one run left in the database. ``inbox`` and ``outbox`` are None where there are no such tables."""

    traces: tuple[KeptTrace, ...]
    inbox: tuple[KeptInbound, ...] | None
    outbox: tuple[KeptOutbound, ...] | None

    @property
    def is_settled(self) -> bool:
        """Whether nothing is open any more."""
        return (
            all(trace.ending is not OPEN for trace in self.traces)
            and all(row.state == "done" for row in self.inbox or ())
            and all(row.state in ("accepted", "failed", "not_sent") for row in self.outbox or ())
        )


class Books(Struct, frozen=True, kw_only=True):
    """All books of one run."""

    plan: RunPlan
    posted: tuple[Posted, ...]
    asked: tuple[Asked, ...]
    accepted: tuple[Accepted, ...]
    kept: Kept
    disagreements: tuple[str, ...] = ()
    """What ``omni traces verify`` said is wrong."""

    def posted_by_mark(self) -> dict[Mark, Posted]:
        """The poster's book of each message; nothing for one that was never posted."""
        by_id = {book.message_id: book for book in self.posted}
        marks = [turn.mark for turn in self.plan.turns]
        return {mark: by_id[mark.message_id] for mark in marks if mark.message_id in by_id}
