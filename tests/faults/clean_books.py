"""Books that balance, made from a plan: what the checker's own tests begin with before they break one thing. Pure."""

from hashlib import sha256
from itertools import count

from msgspec import structs
from tests.faults.agent import Asked
from tests.faults.books import Accepted, Books, Kept, KeptInbound, KeptMessage, KeptOutbound, KeptTrace
from tests.faults.carrier import Posted
from tests.faults.plans import BLANK_LINE, Mark, RunPlan, TurnPlan, plan_run

NOTICE = "Sorry, I had to stop before I was done. Please ask me again."
SMALL = plan_run(1, seed=7, num_chats=2, num_messages=2, num_paragraphs=(3, 3))
"""Two people with two messages each, three paragraphs an answer."""
FIRST = Mark(1, 0, 0)
SECOND = Mark(1, 0, 1)


class Desk:
    """Keeps books turn by turn; ``books`` closes them. Every moment is later than the one before."""

    def __init__(self, plan: RunPlan = SMALL) -> None:
        self.plan = plan
        self.posted: list[Posted] = []
        self.asked: list[Asked] = []
        self.accepted: list[Accepted] = []
        self.traces: list[KeptTrace] = []
        self.inbox: list[KeptInbound] = []
        self.outbox: list[KeptOutbound] = []
        self._moments = count(1)
        self._keys = count(1)

    def post(self, turn: TurnPlan) -> None:
        """The message was posted and acknowledged."""
        self.posted.append(
            Posted(
                message_id=turn.mark.message_id,
                sent_at_s=1_795_342_685,
                first_posted_ns=next(self._moments),
                acknowledged_ns=next(self._moments),
                statuses=[200],
            )
        )

    def answer(self, turn: TurnPlan, *, num_pieces: int | None = None, num_paragraphs: int | None = None) -> KeptTrace:
        """The turn was answered, as far as asked for; less than all of it is an interrupted turn with its notice."""
        pieces = turn.pieces[:num_pieces]
        is_whole = num_pieces is None
        self.asked.append(Asked(mark=turn.mark, asked_ns=next(self._moments), written_ns=[0] * len(pieces)))
        content = "".join(pieces)
        trace_id = f"trace-{len(self.traces)}"
        messages: list[KeptMessage] = []
        position = 0
        paragraphs = content.split(BLANK_LINE)
        for place, paragraph in enumerate(paragraphs):
            end = min(position + len(paragraph) + len(BLANK_LINE), len(content))
            is_sent = num_paragraphs is None or place < num_paragraphs
            messages.append(self._message(turn, trace_id, place, paragraph, (position, end), is_sent=is_sent))
            position = end
        if not is_whole:
            messages.append(self._message(turn, trace_id, len(messages), NOTICE, (position, position), is_notice=True))
        trace = KeptTrace(
            trace_id=trace_id,
            message_id=turn.mark.message_id,
            ending="completed" if is_whole else "interrupted",
            chunks=pieces,
            contents=(content,),
            messages=tuple(messages),
        )
        self.traces.append(trace)
        self.inbox.append(KeptInbound(message_id=turn.mark.message_id, trace_id=trace_id, state="done"))
        return trace

    def books(self) -> Books:
        """Everything written down so far."""
        return Books(
            plan=self.plan,
            posted=tuple(self.posted),
            asked=tuple(self.asked),
            accepted=tuple(self.accepted),
            kept=Kept(traces=tuple(self.traces), inbox=tuple(self.inbox), outbox=tuple(self.outbox)),
        )

    def _message(
        self,
        turn: TurnPlan,
        trace_id: str,
        index: int,
        text: str,
        place: tuple[int, int],
        *,
        is_sent: bool = True,
        is_notice: bool = False,
    ) -> KeptMessage:
        key_id = f"KEY{next(self._keys)}" if is_sent else None
        if key_id is not None:
            now_ns = next(self._moments)
            self.accepted.append(
                Accepted(chat=turn.mark.chat, text=text, key_id=key_id, received_ns=now_ns, accepted_ns=now_ns)
            )
        self.outbox.append(
            KeptOutbound(
                trace_id=trace_id,
                index=index,
                state="accepted" if is_sent else "not_sent",
                key_id=key_id,
                text_sha256=sha256(text.encode()).hexdigest(),
                is_notice=is_notice,
            )
        )
        return KeptMessage(
            index=index,
            text=text,
            status="accepted" if is_sent else "not_sent",
            key_id=key_id,
            start=place[0],
            end=place[1],
            is_notice=is_notice,
        )


def clean_desk() -> Desk:
    """A desk at which everything went well."""
    desk = Desk()
    for turn in desk.plan.turns:
        desk.post(turn)
        desk.answer(turn)
    return desk


def change_trace(desk: Desk, place: int, **changes: object) -> None:
    """Put another version of one trace in its place."""
    desk.traces[place] = structs.replace(desk.traces[place], **changes)


def change_message(desk: Desk, place: int, index: int, **changes: object) -> None:
    """Put another version of one message of a trace in its place."""
    messages = list(desk.traces[place].messages)
    messages[index] = structs.replace(messages[index], **changes)
    change_trace(desk, place, messages=tuple(messages))
