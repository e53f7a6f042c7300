"""Accounts for every inbound message, every chunk and every outgoing message of one run. Pure: books in, an ``Account`` out.

What arrived at the phone is judged by the marks in it alone (``arrivals``); what Omni kept is then compared with that, with what the agent
wrote and with itself (``records``). An acknowledged message is in order when it was answered completely and once, or when its failure
is on record: a closed trace with another ending than ``completed``, of which a beginning went out, and one notice. Everything else is a
``Fault`` with a name of its own; test_checker.py shows that each of them is found.
"""

from collections import Counter
from collections.abc import Iterator

from tests.faults.account import Account, Fault, FaultKind
from tests.faults.arrivals import Arrivals, name_of
from tests.faults.books import OPEN, Books, KeptTrace
from tests.faults.plans import Mark, TurnPlan
from tests.faults.records import ACCEPTED, judge_records

_WITHOUT_NOTICE = ("send_failed",)
"""Endings after which nothing more can be delivered, so that a notice is not asked for."""


def judge(books: Books) -> Account:
    """Compare all books of one run."""
    auditor = _Auditor(books)
    return Account(run=books.plan.run, seed=books.plan.seed, faults=tuple(auditor.faults()), counts=auditor.counts())


class _Auditor:
    def __init__(self, books: Books) -> None:
        self._books = books
        self._posted = books.posted_by_mark()
        self._arrivals = Arrivals(books)
        self._traces: dict[str, list[KeptTrace]] = {turn.mark.message_id: [] for turn in books.plan.turns}
        for trace in books.kept.traces:
            self._traces[trace.message_id].append(trace)

    def faults(self) -> Iterator[Fault]:
        yield from self._arrivals.unknown
        for turn in self._books.plan.turns:
            yield from self._judge_turn(turn)
        for chat in self._books.plan.chats:
            yield from self._arrivals.judge_order(chat)
        yield from judge_records(self._books)
        yield from (Fault("verify_disagrees", "omni traces verify", said) for said in self._books.disagreements)

    def counts(self) -> dict[str, int]:
        books, kept = self._books, self._books.kept
        acknowledged = [book for book in books.posted if book.acknowledged_ns is not None]
        whole = [turn for turn in books.plan.turns if self._arrivals.is_whole(turn)]
        endings = Counter(trace.ending or "open" for trace in kept.traces)
        messages = [message for trace in kept.traces for message in trace.messages]
        return {
            "messages written": len(books.plan.turns),
            "messages acknowledged": len(acknowledged),
            "webhooks posted": sum(len(book.statuses) for book in books.posted),
            "answered whole": len(whole),
            "agent asked": len(books.asked),
            "chunks written": sum(len(asked.written_ns) for asked in books.asked),
            "chunks kept": sum(len(trace.chunks) for trace in kept.traces),
            "messages sent": len(books.accepted),
            "  of these notices": self._arrivals.num_notices,
            "messages on record": len(messages),
            "  of these not sent": sum(message.status not in ACCEPTED for message in messages),
            **{f"traces {ending}": number for ending, number in sorted(endings.items())},
        }

    def _judge_turn(self, turn: TurnPlan) -> Iterator[Fault]:
        mark, where = turn.mark, name_of(turn.mark)
        posted = self._posted.get(mark)
        if posted is None:
            return
        if posted.refused_status is not None:
            yield Fault("refused", where, f"status {posted.refused_status} is never tried again")
        elif posted.acknowledged_ns is None:
            yield Fault("never_acknowledged", where)
        if turn.expectation == "recorded":
            yield from self._judge_recorded(mark)
            return
        yield from self._arrivals.judge_parts(turn)
        traces = self._traces[mark.message_id]
        if not traces:
            if posted.acknowledged_ns is not None:
                yield Fault("trace_missing" if self._arrivals.is_whole(turn) else "unanswered", where, "no trace")
            return
        finals = [trace for trace in traces if _is_final(trace)]
        if len(finals) > 1:
            yield Fault("answered_twice", where, f"{len(finals)} traces with an outcome")
        yield from self._judge_outcome(turn, finals[-1] if finals else traces[-1])

    def _judge_recorded(self, mark: Mark) -> Iterator[Fault]:
        where = name_of(mark)
        if self._arrivals.of(mark) or any(asked.mark == mark for asked in self._books.asked):
            yield Fault("answered_too_late", where)
        traces = self._traces[mark.message_id]
        if len(traces) != 1:
            yield Fault("trace_missing" if not traces else "answered_twice", where, f"{len(traces)} traces")

    def _judge_outcome(self, turn: TurnPlan, final: KeptTrace) -> Iterator[Fault]:
        where = f"{name_of(turn.mark)} ({final.ending or 'open'})"
        sent, notices = self._arrivals.of(turn.mark), self._arrivals.notices_of(turn.mark)
        num_notices = len(notices)
        num_whole, is_whole = self._arrivals.num_whole(turn), self._arrivals.is_whole(turn)
        if final.ending == "completed":
            if not is_whole:
                kind: FaultKind = "message_lost" if sent else "unanswered"
                yield Fault(kind, where, f"{num_whole} of {len(turn.paragraphs)} paragraphs arrived whole")
            if num_notices:
                yield Fault("too_many_notices", where, f"{num_notices} beside a complete answer")
            return
        if final.ending is OPEN and not is_whole and not num_notices:
            yield Fault("unanswered", where, f"{num_whole} of {len(turn.paragraphs)} paragraphs arrived whole")
        if num_notices > 1:
            yield Fault("too_many_notices", where, f"{num_notices}")
        elif num_notices == 0 and not is_whole and final.ending not in (*_WITHOUT_NOTICE, OPEN):
            yield Fault("no_notice" if sent else "unanswered", where, "nobody was told")
        if notices and any(each.place > notices[0].place for each in sent if each.paragraph is not None):
            yield Fault("message_out_of_order", where, "text behind the notice")


def _is_final(trace: KeptTrace) -> bool:
    """Whether this trace is a message's outcome, and not a beginning that nobody saw and that was begun again."""
    return trace.ending != "interrupted" or any(message.status in ACCEPTED for message in trace.messages)
