"""What goes into a spool entry comes out of it unchanged, or is noticed."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.store.records import AT, inbound, outbound, payload, receipt

from omni.ports import DropPayloads, InsertPayload, InsertTrace, UpdateTrace
from omni.store.payload_codec import encode_payload
from omni.store.spool_codec import DamagedEntry, pack_ops, unpack_ledger_ops, unpack_trace_ops

# Any text Python can hold: NUL and halves of surrogate pairs included.
any_text = st.text(st.characters(), max_size=8) | st.sampled_from(["\0", "\ud83d", "a\udc00b", "🐛"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text
moments = st.datetimes(timezones=st.just(UTC)) | st.datetimes()
json_shaped = st.recursive(
    scalars | moments,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
payloads = st.dictionaries(any_text, json_shaped, max_size=4)
trace_ops = st.lists(
    st.one_of(
        st.builds(InsertTrace, any_text, st.dictionaries(any_text, scalars | moments, max_size=4)),
        st.builds(UpdateTrace, any_text, st.dictionaries(any_text, scalars | moments, max_size=4)),
        st.builds(DropPayloads, any_text, any_text),
        st.builds(
            InsertPayload,
            trace_id=any_text,
            stage=any_text,
            payload_type=st.sampled_from(["webhook", "error"]),
            payload=payloads,
            timestamp=st.datetimes(timezones=st.just(UTC)),
            status_code=st.none() | st.integers(0, 599),
            error_details=st.none() | any_text,
            contains_media=st.booleans(),
        ),
    ),
    max_size=5,
)


@given(trace_ops)
def test_trace_operations_come_back_as_they_were(ops):
    assert unpack_trace_ops(pack_ops(ops)) == ops


@given(any_text, payloads)
def test_ledger_operations_come_back_as_they_were(text, raw):
    ops = [inbound(text=text, raw=raw), outbound(text=text), receipt()]
    assert unpack_ledger_ops(pack_ops(ops)) == ops


def test_a_moment_in_another_zone_is_the_same_moment():

    moment = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=-3)))
    (op,) = unpack_trace_ops(pack_ops([UpdateTrace("T1", {"completed_at": moment})]))
    assert op.columns == {"completed_at": moment}


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, float("nan"), (1, 2), b"bytes", {(1, 2): 3}, {1.5: "x"}, [1, {None: 2}], 10**5000],
    ids=lambda value: type(value).__name__,
)
def test_what_json_has_no_form_for_is_stored_as_the_database_would_have(value):
    op = payload(what=value, kept=1)
    (back,) = unpack_trace_ops(pack_ops([op]))
    direct, later = encode_payload(op.payload), encode_payload(back.payload)
    assert (later.text, later.size_original) == (direct.text, direct.size_original)
    assert (back.error_details or later.problem) == direct.problem


def test_a_payload_that_contains_itself_is_described():
    loop = {"kept": 1}
    loop["self"] = loop
    (back,) = unpack_trace_ops(pack_ops([payload(loop=loop)]))
    assert back.payload["loop"]["kept"] == 1
    assert "contains itself" in back.error_details


@given(st.binary(max_size=40))
def test_damaged_bytes_are_noticed(noise):
    with pytest.raises(DamagedEntry):
        unpack_trace_ops(noise)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(position, change):
    entry = bytearray(pack_ops([payload(text="a longer text " * 60)]))
    entry[position % len(entry)] ^= change
    with pytest.raises(DamagedEntry):
        unpack_trace_ops(bytes(entry))


def test_entries_are_packed_where_that_pays():
    ops = [payload(text="the same words again and again " * 100)]
    assert len(pack_ops(ops)) < 400
    assert unpack_trace_ops(pack_ops(ops))[0].timestamp == AT
