"""What Omni kept: each trace against the agent's and Evolution's books and against itself, and inbox and outbox against both. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256

from tests.faults.account import Fault
from tests.faults.arrivals import name_of
from tests.faults.books import OPEN, Accepted, Books, KeptMessage, KeptTrace
from tests.faults.plans import TurnPlan

ACCEPTED = ("accepted", "delivered", "read")
"""A message's states once Evolution has taken it."""


def judge_records(books: Books) -> Iterator[Fault]:
    """Everything that is wrong with what was kept of one run."""
    turns = {turn.mark.message_id: turn for turn in books.plan.turns}
    for trace in books.kept.traces:
        turn = turns[trace.message_id]
        where = f"{name_of(turn.mark)}, trace {trace.trace_id[:8]} ({trace.ending or 'open'})"
        yield from _judge_trace(turn, trace, where)
        yield from _judge_claims(books, trace, where)
    yield from _judge_silence(books)
    if books.kept.inbox is not None:
        yield from _judge_inbox(books)
    if books.kept.outbox is not None:
        yield from _judge_outbox(books)


def _judge_trace(turn: TurnPlan, trace: KeptTrace, where: str) -> Iterator[Fault]:
    if trace.ending is OPEN:
        yield Fault("trace_open", where)
    yield from _judge_chunks(turn, trace, where)
    joined = "".join(trace.chunks)
    if len(trace.contents) > 1 or (trace.chunks and not trace.contents and trace.ending is not OPEN):
        yield Fault("content_differs", where, f"{len(trace.contents)} closing stages")
    for content in trace.contents:
        if content != joined:
            yield Fault("content_differs", where, f"{len(content)} characters, {len(joined)} in its chunks")
    if trace.ending is not OPEN:
        yield from _judge_ranges(trace, joined, where)


def _judge_chunks(turn: TurnPlan, trace: KeptTrace, where: str) -> Iterator[Fault]:
    joined = "".join(trace.chunks)
    if trace.num_dropped:
        yield Fault("chunk_shed", where, f"{trace.num_dropped}")
    if not turn.text.startswith(joined):
        yield Fault("chunk_altered", where, "not what the agent wrote")
    elif trace.ending == "completed" and len(trace.chunks) < len(turn.pieces):
        yield Fault("chunk_lost", where, f"{len(trace.chunks)} of {len(turn.pieces)}")
    else:
        # What an interrupted trace knows from its messages alone stands in one last chunk of its own.
        certain = trace.chunks if trace.ending == "completed" else trace.chunks[:-1]
        if certain != turn.pieces[: len(certain)]:
            yield Fault("chunk_altered", where, "cut at other places than the agent's")


def _judge_claims(books: Books, trace: KeptTrace, where: str) -> Iterator[Fault]:
    """What the trace says was accepted was accepted, with this text."""
    texts = {message.key_id: message.text for message in books.accepted}
    for message in trace.messages:
        if message.status in ACCEPTED and texts.get(message.key_id or "") != message.text:
            yield Fault("trace_boasts", where, f"message {message.index} was not sent like that")


def _judge_ranges(trace: KeptTrace, content: str, where: str) -> Iterator[Fault]:
    """Text generated is text sent and text explicitly not sent: the messages' ranges tile it and hold what they say."""
    position = 0
    for message in _of_answer(trace.messages):
        if message.start != position or message.end is None or message.end < position:
            yield Fault("text_unaccounted", where, f"message {message.index} does not begin at {position}")
            return
        position = message.end
        if content[message.start : message.end].strip() != message.text.strip():
            yield Fault("text_unaccounted", where, f"message {message.index} is not what stands in its range")
    if content[position:].strip():
        yield Fault(
            "text_unaccounted", where, f"{len(content) - position} characters neither sent nor told as not sent"
        )


def _of_answer(messages: Sequence[KeptMessage]) -> list[KeptMessage]:
    return sorted((message for message in messages if not message.is_notice), key=lambda message: message.index)


def _digest(text: str | None) -> str | None:
    return None if text is None else sha256(text.encode()).hexdigest()


def _judge_silence(books: Books) -> Iterator[Fault]:
    """Each message that was sent stands on one trace."""
    kept = books.kept
    told = Counter(message.key_id for trace in kept.traces for message in trace.messages if message.key_id)
    for message in books.accepted:
        if told[message.key_id] != 1 and not _is_known_as_ambiguous(books, message):
            yield Fault(
                "trace_silent", f"chat {message.chat}", f"a message sent stands on {told[message.key_id]} traces"
            )


def _is_known_as_ambiguous(books: Books, message: Accepted) -> bool:
    """Whether it is on record as one of which nobody can tell whether it went out."""
    return any(
        kept.error_kind == "ambiguous" and kept.text == message.text
        for trace in books.kept.traces
        for kept in trace.messages
    )


def _judge_inbox(books: Books) -> Iterator[Fault]:
    rows = {row.message_id: row for row in books.kept.inbox or ()}
    trace_ids = {(trace.message_id, trace.trace_id) for trace in books.kept.traces}
    for mark, posted in books.posted_by_mark().items():
        row = rows.get(mark.message_id)
        if row is None:
            if posted.acknowledged_ns is not None:
                yield Fault("inbox_differs", name_of(mark), "no row")
            continue
        if row.state != "done":
            yield Fault("inbox_differs", name_of(mark), f"still {row.state}")
        if (row.message_id, row.trace_id) not in trace_ids:
            yield Fault("inbox_differs", name_of(mark), "names a trace that is not there")


def _judge_outbox(books: Books) -> Iterator[Fault]:
    rows = books.kept.outbox or ()
    texts = {message.key_id: message.text for message in books.accepted}
    for row in rows:
        where = f"outbox {row.trace_id[:8]}/{row.index}"
        if row.state not in ("accepted", "failed", "not_sent"):
            yield Fault("outbox_differs", where, f"still {row.state}")
        elif row.state == "accepted" and row.text_sha256 != _digest(texts.get(row.key_id or "")):
            yield Fault("outbox_differs", where, "accepted, but not sent like that")
    known = Counter(row.key_id for row in rows)
    for message in books.accepted:
        if known[message.key_id] != 1 and not _is_known_as_ambiguous(books, message):
            yield Fault(
                "outbox_differs", f"chat {message.chat}", f"a message sent stands in {known[message.key_id]} rows"
            )
