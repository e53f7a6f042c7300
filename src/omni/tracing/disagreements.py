"""What ``verify`` finds: one named fact per thing that does not agree, without a word of anybody's text. Pure.

Counts, times, words of ours and positions are facts; texts are told by their length. docs/howto/nothing-lost.md says what each kind means.
"""

from datetime import datetime
from typing import Literal, get_args

from msgspec import Struct

Kind = Literal[
    "payload_damaged",
    "stage_missing",
    "stage_repeated",
    "chunk_columns",
    "chunk_index",
    "chunk_offset",
    "chunk_count",
    "content",
    "content_digest",
    "figure",
    "ending",
    "message_index",
    "message_order",
    "message_range",
    "message_text",
    "message_chunks",
    "receipt",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

Fact = str | int | float | bool | None


class Disagreement(Struct, frozen=True, kw_only=True):
    """One thing that is stored and does not follow from what it is made of.

    ``where`` is the stage and row, the column, or the message; ``stored`` is what stands there, ``derived`` what should.
    """

    kind: Kind
    where: str
    stored: Fact
    derived: Fact

    @property
    def sentence(self) -> str:
        """The fact in one line, for the terminal."""
        return f"{self.where}: stored {self.stored}, derived {self.derived} [{self.kind}]"


class Findings:
    """Collects disagreements in the order they are found."""

    def __init__(self) -> None:
        self.found: list[Disagreement] = []

    def add(self, kind: Kind, where: str, *, stored: object, derived: object) -> None:
        """Note one disagreement."""
        self.found.append(Disagreement(kind=kind, where=where, stored=_fact(stored), derived=_fact(derived)))

    def compare(self, kind: Kind, where: str, *, stored: object, derived: object) -> None:
        """Note a disagreement when the two are not the same. True is not 1 here, and None is not 0."""
        if stored != derived or isinstance(stored, bool) != isinstance(derived, bool):
            self.add(kind, where, stored=stored, derived=derived)


def _fact(value: object) -> Fact:
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return f"a value of type {type(value).__name__}"
