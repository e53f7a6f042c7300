"""Sorts a batch of write operations into few, large steps without changing what they add up to. Pure.

The recorder hands over traces one after another, each a mixture of a new row, payloads and new column values. Operations on
different rows commute, so operations of one kind are moved together, and new column values join the row they are for. Where order
matters (a removal before rows of the same stage, a row named twice) a new step begins.
"""

from collections.abc import Sequence
from typing import Any, assert_never

from omni.ports import DropPayloads, InsertPayload, InsertTrace, UpdateTrace, WriteOp


class WriteStep:
    """Operations that may run kind by kind: new traces, then payloads, then removals, then new column values."""

    __slots__ = ("_touched", "drops", "inserts", "payloads", "updates")

    def __init__(self) -> None:
        self.inserts: dict[str, dict[str, Any]] = {}
        self.payloads: list[InsertPayload] = []
        # Dictionaries used as ordered sets.
        self.drops: dict[tuple[str, str], None] = {}
        self.updates: dict[str, dict[str, Any]] = {}
        self._touched: set[str] = set()

    def accepts(self, op: WriteOp) -> bool:
        """Whether the operation may join without passing one it depends on."""
        if isinstance(op, InsertTrace):
            # Named before: either the row exists already, or what came first was meant for a row that did not.
            return op.trace_id not in self._touched
        if isinstance(op, InsertPayload):
            return (op.trace_id, op.stage) not in self.drops
        return True

    def add(self, op: WriteOp) -> None:
        """Take in an operation this step accepts."""
        self._touched.add(op.trace_id)
        match op:
            case InsertPayload():
                self.payloads.append(op)
            case InsertTrace():
                self.inserts[op.trace_id] = dict(op.columns)
            case UpdateTrace():
                self._add_columns(op)
            case DropPayloads():
                self.drops[op.trace_id, op.stage] = None
            case _:
                assert_never(op)

    def _add_columns(self, op: UpdateTrace) -> None:
        new_row = self.inserts.get(op.trace_id)
        if new_row is not None:
            new_row.update(op.columns)
        elif op.columns:
            self.updates.setdefault(op.trace_id, {}).update(op.columns)


def plan_writes(ops: Sequence[WriteOp]) -> list[WriteStep]:
    """The steps that, run in order, leave what the operations run in order would leave."""
    step = WriteStep()
    steps = [step]
    for op in ops:
        if not step.accepts(op):
            step = WriteStep()
            steps.append(step)
        step.add(op)
    return steps
