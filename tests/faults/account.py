"""What a run came to: its faults, each with a name of its own, its counts, and the table people read. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from msgspec import Struct

FaultKind = Literal[
    "never_acknowledged",
    "refused",
    "unanswered",
    "answered_twice",
    "answered_too_late",
    "no_notice",
    "too_many_notices",
    "message_lost",
    "message_repeated",
    "message_altered",
    "message_unknown",
    "message_out_of_order",
    "turn_out_of_order",
    "chunk_lost",
    "chunk_altered",
    "chunk_shed",
    "content_differs",
    "text_unaccounted",
    "trace_missing",
    "trace_open",
    "trace_silent",
    "trace_boasts",
    "inbox_differs",
    "outbox_differs",
    "verify_disagrees",
]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

LOST: tuple[FaultKind, ...] = (
    "never_acknowledged",
    "refused",
    "unanswered",
    "message_lost",
    "chunk_lost",
    "trace_missing",
)
REPEATED: tuple[FaultKind, ...] = ("answered_twice", "message_repeated", "too_many_notices")
OUT_OF_ORDER: tuple[FaultKind, ...] = ("message_out_of_order", "turn_out_of_order")

_FAULTS_SHOWN = 40


class Fault(Struct, frozen=True):
    """One thing that is not as it should be."""

    kind: FaultKind
    where: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}" + (f": {self.what}" if self.what else "")


class Account(Struct, frozen=True, kw_only=True):
    """The outcome: counts of everything, and the faults."""

    run: int
    seed: int
    counts: dict[str, int]
    faults: tuple[Fault, ...]

    @property
    def kinds(self) -> Counter[FaultKind]:
        """How many faults of each kind."""
        return Counter(fault.kind for fault in self.faults)

    def number(self, kinds: Sequence[FaultKind]) -> int:
        """How many faults of these kinds."""
        return sum(self.kinds[kind] for kind in kinds)

    def table(self) -> str:
        """Counts and faults for people."""
        verdict = {
            "lost": self.number(LOST),
            "duplicated": self.number(REPEATED),
            "out of order": self.number(OUT_OF_ORDER),
            "faults": len(self.faults),
        }
        rows = [f"  {name:<28}{number:>7}" for name, number in (*self.counts.items(), *verdict.items())]
        shown = [f"  ! {fault}" for fault in self.faults[:_FAULTS_SHOWN]]
        if len(self.faults) > _FAULTS_SHOWN:
            shown.append(f"  ! and {len(self.faults) - _FAULTS_SHOWN} more: {dict(self.kinds)}")
        return "\n".join([f"run {self.run}, seed {self.seed}", *rows, *shown])
