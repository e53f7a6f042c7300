"""What the people of a fault run write and what the agent answers them, made from a seed. Pure.

Every word of every answer carries a mark of its own, ``⟦r3c2m1p0w4⟧``: run, chat, message, paragraph, word. So whatever arrives at the
phone can be attributed by itself, and loss, repetition and order be judged without asking Omni anything. The text between the marks
holds what breaks careless code: accents, emoji of several code points, and chunks cut anywhere, blank lines included.
"""

import random
import re
from itertools import accumulate
from typing import Literal

from msgspec import Struct

from omni.sandbox.evolution_wire import Contact

BLANK_LINE = "\n\n"
Expectation = Literal["answered", "recorded"]
"""``recorded`` is a message that came too late to be answered: a closed trace, and not a word to anybody."""

_FILLERS = [
    "pedido",
    "entrega",
    "amanhã",
    "até",
    "18h",
    "ação",
    "🚚",
    "número",
    "às",
    "👩\u200d👩\u200d👧",
    "órgão",
    "não",
    "está",
    "pronto",
    "café",
    "🇧🇷",
    "então",
    "obrigado",
]
_QUESTION = re.compile(r"⟦r(\d+)c(\d+)m(\d+)⟧")
_WORD = re.compile(r"⟦r(\d+)c(\d+)m(\d+)p(\d+)w(\d+)⟧")


class Mark(Struct, frozen=True, order=True):
    """Which message of which chat of which run."""

    run: int
    chat: int
    number: int

    @property
    def message_id(self) -> str:
        """The id WhatsApp gave the message."""
        return f"3A{self.run:06d}{self.chat:04d}{self.number:04d}FA"


class TurnPlan(Struct, frozen=True, kw_only=True):
    """One message of a person and the answer to it; the chunks are written ``gaps_s`` seconds after each other.

    The person writes it ``wait_s`` seconds after the one before was taken.
    """

    mark: Mark
    paragraphs: tuple[str, ...]
    pieces: tuple[str, ...]
    gaps_s: tuple[float, ...]
    wait_s: float = 0.0
    expectation: Expectation = "answered"

    @property
    def question(self) -> str:
        """What the person writes."""
        return f"⟦r{self.mark.run}c{self.mark.chat}m{self.mark.number}⟧ e o meu pedido?"

    @property
    def text(self) -> str:
        """The whole answer."""
        return BLANK_LINE.join(self.paragraphs)

    @property
    def completing_pieces(self) -> list[int]:
        """For each paragraph the piece that completes it: the one with the end of the blank line, or the last piece."""
        ends = list(accumulate(len(piece) for piece in self.pieces))
        found, position = [], 0
        for paragraph in self.paragraphs[:-1]:
            position += len(paragraph) + len(BLANK_LINE)
            found.append(next(index for index, end in enumerate(ends) if end >= position))
        return [*found, len(self.pieces) - 1]


class RunPlan(Struct, frozen=True, kw_only=True):
    """Everything one run is about."""

    run: int
    seed: int
    turns: tuple[TurnPlan, ...]

    @property
    def chats(self) -> list[int]:
        """The chats, in order."""
        return sorted({turn.mark.chat for turn in self.turns})

    def of_chat(self, chat: int) -> list[TurnPlan]:
        """One person's messages in the order they are written."""
        return [turn for turn in self.turns if turn.mark.chat == chat]

    @property
    def num_events(self) -> int:
        """What happens in an undisturbed run: messages posted, acknowledged and asked, chunks written, messages sent and accepted."""
        return sum(3 + len(turn.pieces) + 2 * len(turn.paragraphs) for turn in self.turns)


def plan_run(
    run: int,
    *,
    seed: int,
    num_chats: int = 4,
    num_messages: int = 3,
    num_paragraphs: tuple[int, int] = (2, 4),
    num_words: tuple[int, int] = (2, 6),
    gap_s: float = 0.012,
    wait_s: float = 0.2,
) -> RunPlan:
    """A run of ``num_chats`` people who write ``num_messages`` each. The same seed gives the same plan.

    ``gap_s`` between chunks and ``wait_s`` between a person's messages are what they are on average.
    """
    rng = random.Random(f"{seed} {run}")
    turns = []
    for chat in range(num_chats):
        for number in range(num_messages):
            mark = Mark(run, chat, number)
            paragraphs = tuple(
                _paragraph(rng, mark, place, rng.randint(*num_words)) for place in range(rng.randint(*num_paragraphs))
            )
            pieces = _pieces(rng, BLANK_LINE.join(paragraphs))
            gaps = tuple(rng.uniform(0.2, 1.8) * gap_s for _ in pieces)
            waits_s = rng.uniform(0, 2) * wait_s
            turns.append(
                TurnPlan(mark=mark, paragraphs=paragraphs, pieces=pieces, gaps_s=gaps, wait_s=waits_s)
            )  # fmt: skip
    return RunPlan(run=run, seed=seed, turns=tuple(turns))


def person(run: int, chat: int) -> Contact:
    """Who writes in a chat; no two runs share a person."""
    return Contact(phone=f"55119{run:04d}{chat:04d}", lid=f"77{run:06d}{chat:06d}", name=f"Pessoa {run}-{chat}")


def asked_mark(message: str) -> Mark | None:
    """The mark of a question as the agent gets it; None when it has none."""
    found = _QUESTION.search(message)
    return None if found is None else Mark(*(int(number) for number in found.groups()))


class Part(Struct, frozen=True, order=True):
    """One paragraph of one answer."""

    mark: Mark
    paragraph: int


def parts_of(text: str) -> list[Part]:
    """The paragraphs a text carries words of, in the order they first come; none in a notice."""
    found = [
        Part(Mark(int(run), int(chat), int(number)), int(place))
        for run, chat, number, place, _ in _WORD.findall(text)
    ]  # fmt: skip
    return list(dict.fromkeys(found))


def _paragraph(rng: random.Random, mark: Mark, place: int, num_words: int) -> str:
    words = [
        f"⟦r{mark.run}c{mark.chat}m{mark.number}p{place}w{index}⟧ {rng.choice(_FILLERS)}" for index in range(num_words)
    ]
    return " ".join(words) + "."


def _pieces(rng: random.Random, text: str) -> tuple[str, ...]:
    pieces, position = [], 0
    while position < len(text):
        size = rng.randint(1, 24)
        pieces.append(text[position : position + size])
        position += size
    return tuple(pieces)
