"""Books with one thing wrong in them, each made by a function that says what; ``BROKEN`` says which faults must be found. Pure."""

from collections.abc import Callable

from msgspec import structs
from tests.faults.account import FaultKind
from tests.faults.books import Accepted
from tests.faults.clean_books import NOTICE, SMALL, Desk, change_message, change_trace, clean_desk

TURN, NEXT = SMALL.turns[0], SMALL.turns[1]


def expecting(desk: Desk, expectation: str) -> Desk:
    """The same desk, at which the first message came too late to be answered."""
    desk.plan = structs.replace(desk.plan, turns=(structs.replace(TURN, expectation=expectation), *desk.plan.turns[1:]))
    return desk


def cut_desk(num_pieces: int, num_paragraphs: int) -> Desk:
    """The first turn was cut off after so many chunks and so many messages."""
    desk = Desk()
    for turn in desk.plan.turns:
        desk.post(turn)
        if turn is TURN:
            desk.answer(turn, num_pieces=num_pieces, num_paragraphs=num_paragraphs)
        else:
            desk.answer(turn)
    return desk


def never_acknowledged() -> Desk:
    desk = clean_desk()
    desk.posted[0].acknowledged_ns = None
    desk.posted[0].statuses = [503, None]
    return desk


def refused() -> Desk:
    desk = clean_desk()
    desk.posted[0].refused_status = 404
    return desk


def unanswered() -> Desk:
    """Acknowledged, and then forgotten: what a kill does to a queue that is only in memory."""
    desk = clean_desk()
    desk.accepted = [message for message in desk.accepted if message.chat != 0]
    desk.traces = [trace for trace in desk.traces if trace.message_id not in first_chat()]
    desk.outbox = [row for row in desk.outbox if row.trace_id in {trace.trace_id for trace in desk.traces}]
    desk.inbox = [row for row in desk.inbox if row.message_id not in first_chat()]
    return desk


def first_chat() -> set[str]:
    return {turn.mark.message_id for turn in SMALL.of_chat(0)}


def passed_over_in_silence() -> Desk:
    """Closed as interrupted before anything went out, and nobody was told: for the person it is as lost as any."""
    desk = cut_desk(3, 0)
    notice = next(message for message in desk.accepted if message.text == NOTICE)
    desk.accepted.remove(notice)
    desk.outbox = [row for row in desk.outbox if row.key_id != notice.key_id]
    change_trace(desk, 0, messages=tuple(m for m in desk.traces[0].messages if not m.is_notice))
    return desk


def left_in_the_middle() -> Desk:
    """A part went out, and then nothing more, not even a word of it on the trace."""
    desk = no_notice()
    change_trace(desk, 0, ending=None)
    return desk


def answered_twice() -> Desk:
    desk = clean_desk()
    desk.answer(TURN)
    desk.inbox.pop(0)
    return desk


def answered_too_late() -> Desk:
    return expecting(clean_desk(), "recorded")


def no_notice() -> Desk:
    desk = cut_desk(3, 1)
    notice = next(message for message in desk.accepted if message.text == NOTICE)
    desk.accepted.remove(notice)
    desk.outbox = [row for row in desk.outbox if row.key_id != notice.key_id]
    change_trace(desk, 0, messages=tuple(m for m in desk.traces[0].messages if not m.is_notice))
    return desk


def too_many_notices() -> Desk:
    desk = clean_desk()
    trace = desk.traces[0]
    notice = desk._message(TURN, trace.trace_id, len(trace.messages), NOTICE, (0, 0), is_notice=True)
    change_trace(desk, 0, messages=(*trace.messages, notice))
    return desk


def message_lost() -> Desk:
    """The middle of an answer never arrived, and its trace says so, but it goes on as if nothing were."""
    desk = clean_desk()
    lost = desk.accepted.pop(1)
    desk.outbox = [
        structs.replace(row, state="failed", key_id=None) if row.key_id == lost.key_id else row for row in desk.outbox
    ]
    change_message(desk, 0, 1, status="failed", key_id=None)
    return desk


def message_repeated() -> Desk:
    """Sent once more after a broken connection, without looking whether it had gone out."""
    desk = clean_desk()
    again = structs.replace(desk.accepted[1], key_id="KEY-AGAIN")
    desk.accepted.insert(2, again)
    return desk


def message_altered() -> Desk:
    desk = clean_desk()
    desk.accepted[1] = structs.replace(desk.accepted[1], text=desk.accepted[1].text[:-1])
    return desk


def message_unknown() -> Desk:
    desk = clean_desk()
    desk.accepted.append(Accepted(chat=0, text=NOTICE, key_id="KEY-FROM-NOWHERE", received_ns=1, accepted_ns=1))
    return desk


def message_of_another_chat() -> Desk:
    desk = clean_desk()
    desk.accepted[0] = structs.replace(desk.accepted[0], chat=1)
    return desk


def message_out_of_order() -> Desk:
    desk = clean_desk()
    desk.accepted[0], desk.accepted[1] = desk.accepted[1], desk.accepted[0]
    return desk


def notice_before_text() -> Desk:
    desk = cut_desk(len(TURN.pieces) - 1, 2)
    places = [place for place, message in enumerate(desk.accepted) if message.chat == 0][1:3]
    assert desk.accepted[places[1]].text == NOTICE
    desk.accepted[places[0]], desk.accepted[places[1]] = desk.accepted[places[1]], desk.accepted[places[0]]
    return desk


def turn_out_of_order() -> Desk:
    desk = clean_desk()
    desk.accepted[:6] = [*desk.accepted[3:6], *desk.accepted[:3]]
    return desk


def chunk_lost() -> Desk:
    desk = clean_desk()
    change_trace(desk, 0, chunks=TURN.pieces[:-1], contents=("".join(TURN.pieces[:-1]),))
    return desk


def chunk_altered() -> Desk:
    desk = clean_desk()
    chunks = (TURN.pieces[0] + TURN.pieces[1], *TURN.pieces[2:-1], TURN.pieces[-1][:1], TURN.pieces[-1][1:])
    assert len(chunks) == len(TURN.pieces)
    change_trace(desk, 0, chunks=chunks)
    return desk


def chunk_of_another_turn() -> Desk:
    desk = clean_desk()
    change_trace(desk, 0, chunks=NEXT.pieces, contents=(NEXT.text,))
    return desk


def chunk_shed() -> Desk:
    desk = clean_desk()
    change_trace(desk, 0, num_dropped=2)
    return desk


def content_differs() -> Desk:
    desk = clean_desk()
    change_trace(desk, 0, contents=(TURN.text + "?",))
    return desk


def content_missing() -> Desk:
    desk = clean_desk()
    change_trace(desk, 0, contents=())
    return desk


def text_unaccounted() -> Desk:
    """The end of an answer was neither sent nor told as not sent."""
    desk = cut_desk(len(TURN.pieces) - 1, 1)
    messages = [message for message in desk.traces[0].messages if message.status != "not_sent"]
    change_trace(desk, 0, messages=tuple(messages))
    return desk


def trace_missing() -> Desk:
    """Answered, and the answer is on no trace."""
    desk = clean_desk()
    desk.traces.pop(0)
    return desk


def trace_open() -> Desk:
    desk = clean_desk()
    change_trace(desk, 0, ending=None)
    return desk


def trace_silent() -> Desk:
    desk = clean_desk()
    change_message(desk, 0, 1, key_id=None, status="failed", error_kind="transient")
    return desk


def trace_boasts() -> Desk:
    desk = clean_desk()
    change_message(desk, 0, 1, text=TURN.paragraphs[1] + " ")
    return desk


def inbox_differs() -> Desk:
    desk = clean_desk()
    desk.inbox[0] = structs.replace(desk.inbox[0], state="running")
    return desk


def inbox_forgets() -> Desk:
    desk = clean_desk()
    desk.inbox.pop()
    return desk


def outbox_differs() -> Desk:
    desk = clean_desk()
    desk.outbox[0] = structs.replace(desk.outbox[0], state="sending")
    return desk


def outbox_forgets() -> Desk:
    desk = clean_desk()
    desk.outbox.pop()
    return desk


def outbox_boasts() -> Desk:
    desk = clean_desk()
    desk.outbox[0] = structs.replace(desk.outbox[0], text_sha256="0" * 64)
    return desk


BROKEN: dict[Callable[[], Desk], set[FaultKind]] = {
    never_acknowledged: {"never_acknowledged"},
    refused: {"refused"},
    unanswered: {"unanswered", "inbox_differs"},
    passed_over_in_silence: {"unanswered"},
    left_in_the_middle: {"unanswered", "trace_open"},
    answered_twice: {"answered_twice", "message_repeated", "turn_out_of_order"},
    answered_too_late: {"answered_too_late"},
    no_notice: {"no_notice"},
    too_many_notices: {"too_many_notices", "turn_out_of_order"},
    message_lost: {"message_lost"},
    message_repeated: {"message_repeated", "trace_silent", "outbox_differs"},
    message_altered: {"message_altered", "message_lost", "trace_boasts", "outbox_differs"},
    message_unknown: {"message_unknown", "trace_silent", "outbox_differs"},
    message_of_another_chat: {"message_unknown", "message_lost"},
    message_out_of_order: {"message_out_of_order"},
    notice_before_text: {"message_out_of_order"},
    turn_out_of_order: {"turn_out_of_order"},
    chunk_lost: {"chunk_lost", "text_unaccounted"},
    chunk_altered: {"chunk_altered"},
    chunk_of_another_turn: {"chunk_altered", "text_unaccounted"},
    chunk_shed: {"chunk_shed"},
    content_differs: {"content_differs"},
    content_missing: {"content_differs"},
    text_unaccounted: {"text_unaccounted"},
    trace_missing: {"trace_missing", "trace_silent", "inbox_differs"},
    trace_open: {"trace_open"},
    trace_silent: {"trace_silent"},
    trace_boasts: {"trace_boasts"},
    inbox_differs: {"inbox_differs"},
    inbox_forgets: {"inbox_differs"},
    outbox_differs: {"outbox_differs"},
    outbox_forgets: {"outbox_differs"},
    outbox_boasts: {"outbox_differs"},
}
"""What is broken, and every kind of fault that has to be found in it: the one it is about, and those that follow from it."""
