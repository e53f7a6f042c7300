"""Sorting a batch into steps changes how many statements run, never what is stored."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from omni.ports import DropPayloads, InsertPayload, InsertTrace, UpdateTrace
from omni.store.write_plan import plan_writes

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def payload(trace_id, stage, number=0):
    return InsertPayload(
        trace_id=trace_id, stage=stage, payload_type="stream_event", payload={"n": number}, timestamp=NOON
    )


trace_ids = st.sampled_from(["t1", "t2", "t3"])
stages = st.sampled_from(["segments", "packed"])
columns = st.dictionaries(st.sampled_from(["status", "error_stage", "message_length"]), st.integers(0, 9))
operations = st.lists(
    st.builds(InsertTrace, trace_ids, columns)
    | st.builds(UpdateTrace, trace_ids, columns)
    | st.builds(DropPayloads, trace_ids, stages)
    | st.builds(payload, trace_ids, stages, st.integers(0, 9))
)


class Refused(Exception):
    """What a database answers to a second row of one id, or to a change of a row that is not there."""


class Tables:
    """The two tables and their rules, as plainly as can be."""

    def __init__(self):
        self.traces = {}
        self.payloads = []

    def run(self, op):
        match op:
            case InsertTrace():
                if op.trace_id in self.traces:
                    raise Refused
                self.traces[op.trace_id] = dict(op.columns)
            case UpdateTrace():
                if op.columns and op.trace_id not in self.traces:
                    raise Refused
                if op.columns:
                    self.traces[op.trace_id].update(op.columns)
            case InsertPayload():
                if op.trace_id not in self.traces:
                    raise Refused
                self.payloads.append(op)
            case DropPayloads():
                self.payloads = [row for row in self.payloads if (row.trace_id, row.stage) != (op.trace_id, op.stage)]


def outcome(ops):
    tables = Tables()
    try:
        for op in ops:
            tables.run(op)
    except Refused:
        return "refused"
    by_trace = {trace_id: [row for row in tables.payloads if row.trace_id == trace_id] for trace_id in tables.traces}
    return tables.traces, by_trace


def in_steps(ops):
    for step in plan_writes(ops):
        yield from (InsertTrace(trace_id, values) for trace_id, values in step.inserts.items())
        yield from step.payloads
        yield from (DropPayloads(*key) for key in step.drops)
        yield from (UpdateTrace(trace_id, values) for trace_id, values in step.updates.items())


@given(operations)
def test_the_steps_leave_what_the_operations_in_order_leave(ops):
    assert outcome(in_steps(ops)) == outcome(ops)


def test_many_whole_traces_are_one_step():
    ops = []
    for trace_id in ("t1", "t2"):
        ops += [
            InsertTrace(trace_id, {"status": "received"}),
            payload(trace_id, "segments"),
            DropPayloads(trace_id, "segments"),
            payload(trace_id, "packed"),
            UpdateTrace(trace_id, {"status": "completed"}),
        ]
    (step,) = plan_writes(ops)
    assert step.inserts == {"t1": {"status": "completed"}, "t2": {"status": "completed"}}
    assert step.updates == {}
    assert list(step.drops) == [("t1", "segments"), ("t2", "segments")]


def test_a_removal_before_new_rows_of_its_stage_keeps_those_rows():
    ops = [DropPayloads("t1", "packed"), payload("t1", "packed", 1)]
    first, second = plan_writes(ops)
    assert (list(first.drops), first.payloads) == ([("t1", "packed")], [])
    assert (list(second.drops), second.payloads) == ([], [ops[1]])


def test_nothing_to_write_is_one_empty_step():
    (step,) = plan_writes([])
    assert (step.inserts, step.payloads, step.drops, step.updates) == ({}, [], {}, {})
