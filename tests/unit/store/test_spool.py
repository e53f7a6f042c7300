"""The spool keeps what it was given through the death of its process, and says what it could not keep."""

import sqlite3

import pytest
from tests.unit.store.records import inbound, opened, payload

from omni.store.spool import Spool, SpoolError
from omni.store.spool_codec import unpack_ledger_ops, unpack_trace_ops

MEGABYTE = 1_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool" / "p1.db"


@pytest.fixture
def spool(path):
    spool = Spool(path, max_bytes=MEGABYTE)
    yield spool
    spool.close()


def stages(spool):
    entries = spool.oldest("trace", max_entries=1_000, max_bytes=MEGABYTE)
    return [(entry.batch_no, [op.stage for op in unpack_trace_ops(entry.body)]) for entry in entries]


def fill(spool, num_batches, size=1_000):
    for number in range(1, num_batches + 1):
        spool.append_traces([payload(stage=f"s{number}", noise=noise(number, size))], batch_no=number)


def fill_ledger(spool, num_groups):
    for number in range(num_groups):
        spool.append_ledger([inbound(number)])


def noise(seed, size):
    """Text that does not compress."""
    value, digits = seed + 1, []
    for _ in range(size):
        value = value * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        digits.append(chr(33 + (value >> 33) % 90))
    return "".join(digits)


def test_a_process_that_needs_none_has_no_file(path, spool):
    assert (path.parent.exists(), spool.is_empty, spool.size_bytes) == (False, True, 0)
    assert spool.oldest("trace", max_entries=5, max_bytes=MEGABYTE) == []
    assert spool.discard_if_empty()


def test_entries_come_back_in_their_order_and_the_file_goes_with_the_last(path, spool):
    spool.append_traces([opened(), payload(stage="a")], batch_no=7)
    spool.append_ledger([inbound(1)])
    spool.append_traces([payload(stage="b")], batch_no=8)
    assert (spool.num_traces, spool.num_entries) == (2, 3)
    traces = spool.oldest("trace", max_entries=10, max_bytes=MEGABYTE)
    assert [entry.batch_no for entry in traces] == [7, 8]
    (group,) = spool.oldest("ledger", max_entries=10, max_bytes=MEGABYTE)
    assert unpack_ledger_ops(group.body) == [inbound(1)]
    spool.remove("trace", traces[:1])
    assert stages(spool) == [(8, ["b"])]
    assert not spool.discard_if_empty()
    spool.remove("trace", traces[1:])
    spool.remove("ledger", [group])
    assert spool.discard_if_empty()
    assert list(path.parent.iterdir()) == []
    spool.append_ledger([inbound(2)])
    assert path.exists()


def test_a_slice_is_bounded_in_bytes_and_never_empty(spool):
    fill(spool, 5, size=2_000)
    assert len(spool.oldest("trace", max_entries=10, max_bytes=5_000)) == 2
    assert len(spool.oldest("trace", max_entries=10, max_bytes=1)) == 1


def test_what_a_dead_process_left_is_read_by_the_next(path, spool):
    fill(spool, 3)
    spool.append_ledger([inbound(1)])
    size = spool.size_bytes
    spool.close()
    next_one = Spool(path, max_bytes=MEGABYTE)
    assert (next_one.num_traces, next_one.num_entries, next_one.size_bytes) == (3, 4, size)
    assert [number for number, _ in stages(next_one)] == [1, 2, 3]
    next_one.close()


def test_a_file_whose_process_was_killed_is_read_with_its_log(path, spool, tmp_path):
    """A kill leaves the write-ahead log; what it holds was durable and still is."""
    fill(spool, 3)
    copy = tmp_path / "left" / "p1.db"
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    left = Spool(copy, max_bytes=MEGABYTE)
    assert [number for number, _ in stages(left)] == [1, 2, 3]
    left.close()


def test_it_sheds_chunks_before_it_is_full_and_keeps_room_for_the_ledger(path):
    spool = Spool(path, max_bytes=20_000)
    fill(spool, 13)
    assert not spool.sheds_chunks
    fill(spool, 3)
    assert spool.sheds_chunks
    with pytest.raises(SpoolError, match="full") as refusal:
        fill(spool, 10)
    assert refusal.value.retryable
    assert spool.size_bytes <= 20_000 * 15 / 16
    spool.append_ledger([inbound(1)])
    with pytest.raises(SpoolError, match="full"):
        fill_ledger(spool, 1_000)
    assert spool.size_bytes <= 20_000
    spool.close()


def test_a_disk_that_refuses_is_an_answer_not_a_crash(path, spool):
    fill(spool, 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(SpoolError, match="SQLITE_BUSY") as refusal:
        fill(spool, 1)
    assert refusal.value.retryable
    other.execute("rollback")
    other.close()
    spool.append_traces([payload()], batch_no=2)
    assert spool.num_traces == 2


def test_a_folder_that_cannot_be_made_is_an_answer_too(tmp_path):
    (tmp_path / "file").write_text("in the way")
    spool = Spool(tmp_path / "file" / "p1.db", max_bytes=MEGABYTE)
    with pytest.raises(SpoolError, match="folder"):
        spool.append_ledger([inbound()])


@pytest.mark.parametrize("content", [b"", b"x" * 5_000])
def test_a_file_that_is_no_database_is_set_aside(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    spool = Spool(path, max_bytes=MEGABYTE)
    assert (spool.is_empty, bool(spool.problems)) == (True, bool(content))
    assert path.with_name("p1.db.damaged").exists() == bool(content)
    spool.append_traces([payload(stage="a")], batch_no=1)
    assert stages(spool) == [(1, ["a"])]
    spool.close()


def test_a_file_that_was_cut_short_gives_what_can_be_read(path, spool):
    fill(spool, 40, size=3_000)
    spool.close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 // 4096 * 4096])
    left = Spool(path, max_bytes=MEGABYTE)
    numbers = [number for number, _ in stages(left)]
    assert 0 < len(numbers) < 40
    assert numbers == sorted(numbers)
    assert left.num_unreadable >= 1
    assert path.with_name("p1.db.damaged").exists()
    left.close()


def test_a_page_that_was_overwritten_costs_what_was_on_it(path, spool):
    fill(spool, 40, size=3_000)
    spool.close()
    content = bytearray(path.read_bytes())
    page = len(content) // 2 // 4096 * 4096
    content[page : page + 4096] = b"\xff" * 4096
    path.write_bytes(bytes(content))
    left = Spool(path, max_bytes=MEGABYTE)
    numbers = [number for number, _ in stages(left)]
    assert numbers[0] == 1
    assert numbers[-1] == 40
    assert len(numbers) + left.num_unreadable == 40
    left.close()


def test_a_spool_damaged_while_in_use_goes_on(path, spool):
    fill(spool, 40, size=3_000)
    spool.close()
    content = bytearray(path.read_bytes())
    content[4096 * 4 :] = b"\xff" * (len(content) - 4096 * 4)
    path.write_bytes(bytes(content))
    numbers = [number for number, _ in stages(spool)]
    assert len(numbers) + spool.num_unreadable == 40
    spool.append_traces([payload(stage="new")], batch_no=41)
    assert stages(spool)[-1] == (41, ["new"])


def test_a_file_that_cannot_be_removed_stops_nobody(path, spool):
    """The gate's thread removes the file; it must go on draining whatever the disk says to that."""
    spool.append_ledger([inbound(1)])
    spool.remove("ledger", spool.oldest("ledger", max_entries=10, max_bytes=1_000_000))
    spool.close()
    path.unlink()
    path.mkdir()
    assert spool.discard_if_empty() is True
