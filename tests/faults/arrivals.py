"""What arrived at the phone: whose each message is, by its marks, and whether each answer came once, in order and unchanged. Pure.

Omni's own word is needed for what carries no mark, notices and beginnings of a few characters; it is taken from their key ids.
"""

from collections.abc import Iterator, Sequence

from msgspec import Struct
from tests.faults.account import Fault
from tests.faults.books import Accepted, Books
from tests.faults.plans import Mark, Part, TurnPlan, parts_of


class Sent(Struct, frozen=True):
    """One accepted message and whose it is; ``paragraph`` is None for a notice."""

    place: int
    mark: Mark
    paragraph: int | None
    text: str


class Arrivals:
    """All messages of one run that were sent, attributed. ``unknown`` are the faults of those that are nobody's."""

    def __init__(self, books: Books) -> None:
        self.unknown: list[Fault] = []
        self._books = books
        self._turns = {turn.mark: turn for turn in books.plan.turns}
        self._told = dict(_owners(books))
        self._sent: dict[Mark, list[Sent]] = {mark: [] for mark in self._turns}
        for chat in books.plan.chats:
            self._attribute([message for message in books.accepted if message.chat == chat])

    def of(self, mark: Mark) -> list[Sent]:
        """What was sent in answer to one message, notices included, in order."""
        return self._sent[mark]

    def notices_of(self, mark: Mark) -> list[Sent]:
        """The notices among them."""
        return [sent for sent in self._sent[mark] if sent.paragraph is None]

    @property
    def num_notices(self) -> int:
        """How many notices were sent in all."""
        return sum(len(self.notices_of(mark)) for mark in self._turns)

    def num_whole(self, turn: TurnPlan) -> int:
        """How many of an answer's paragraphs arrived whole."""
        arrived = {(sent.paragraph, sent.text) for sent in self._sent[turn.mark]}
        return sum(whole in arrived for whole in enumerate(turn.paragraphs))

    def is_whole(self, turn: TurnPlan) -> bool:
        """Whether all of them did."""
        return self.num_whole(turn) == len(turn.paragraphs)

    def judge_parts(self, turn: TurnPlan) -> Iterator[Fault]:
        """What arrived of one answer: each paragraph once, in order, unchanged; only the last may be a beginning."""
        where = name_of(turn.mark)
        seen: list[int] = []
        arrived = [sent for sent in self._sent[turn.mark] if sent.paragraph is not None]
        last = max((sent.paragraph for sent in arrived if sent.paragraph is not None), default=-1)
        for sent in arrived:
            assert sent.paragraph is not None
            if sent.paragraph in seen:
                yield Fault("message_repeated", where, f"paragraph {sent.paragraph}")
            elif seen and sent.paragraph < max(seen):
                yield Fault("message_out_of_order", where, f"paragraph {sent.paragraph} behind {max(seen)}")
            seen.append(sent.paragraph)
            whole = turn.paragraphs[sent.paragraph]
            is_beginning = sent.paragraph == last and whole.startswith(sent.text) and sent.text
            if sent.text != whole and not is_beginning:
                yield Fault("message_altered", where, f"paragraph {sent.paragraph}")
        yield from (
            Fault("message_lost", where, f"paragraph {place}, with later ones sent")
            for place in range(last)
            if place not in seen
        )

    def judge_order(self, chat: int) -> Iterator[Fault]:
        """Answers follow each other in the order in which their questions came; where that cannot be told, any order is right."""
        posted = self._books.posted_by_mark()
        turns = [turn for turn in self._books.plan.of_chat(chat) if turn.mark in posted and self._sent[turn.mark]]
        for turn in turns:
            for other in turns:
                a, b = posted[turn.mark], posted[other.mark]
                if a.acknowledged_ns is None or b.first_posted_ns is None or a.acknowledged_ns >= b.first_posted_ns:
                    continue
                if a.sent_at_s > b.sent_at_s:
                    continue  # the later one was written first; it may go first as long as both wait
                if max(s.place for s in self._sent[turn.mark]) > min(s.place for s in self._sent[other.mark]):
                    yield Fault("turn_out_of_order", name_of(turn.mark), f"not before {name_of(other.mark)}")

    def _attribute(self, messages: Sequence[Accepted]) -> None:
        """Say of each message of a chat which part of which answer it is."""
        for place, message in enumerate(messages):
            parts = parts_of(message.text)
            told = self._told.get(message.key_id)
            if parts:
                self._put(place, parts[0], message)
            elif told is None:
                self.unknown.append(Fault("message_unknown", f"chat {message.chat}", f"place {place}, on no record"))
            elif told[1]:
                self._sent[told[0]].append(Sent(place, told[0], None, message.text))
            else:
                # The beginning of a paragraph, cut before its first mark was complete.
                behind = [sent.paragraph for sent in self._sent[told[0]] if sent.paragraph is not None]
                self._put(place, Part(told[0], max(behind, default=-1) + 1), message)

    def _put(self, place: int, part: Part, message: Accepted) -> None:
        turn = self._turns.get(part.mark)
        if turn is None or part.mark.chat != message.chat or part.paragraph >= len(turn.paragraphs):
            self.unknown.append(Fault("message_unknown", f"chat {message.chat}", f"place {place}, of {part}"))
            return
        self._sent[part.mark].append(Sent(place, part.mark, part.paragraph, message.text))


def name_of(mark: Mark) -> str:
    """A message as faults name it."""
    return f"chat {mark.chat} message {mark.number}"


def _owners(books: Books) -> Iterator[tuple[str, tuple[Mark, bool]]]:
    """Key ids and whose they are by Omni's own word, with whether they are notices."""
    mark_by_id = {turn.mark.message_id: turn.mark for turn in books.plan.turns}
    mark_by_trace = {trace.trace_id: mark_by_id[trace.message_id] for trace in books.kept.traces}
    for row in books.kept.outbox or ():
        if row.key_id is not None and row.trace_id in mark_by_trace:
            yield row.key_id, (mark_by_trace[row.trace_id], row.is_notice)
    for trace in books.kept.traces:
        for message in trace.messages:
            if message.key_id is not None:
                yield message.key_id, (mark_by_trace[trace.trace_id], message.is_notice)
