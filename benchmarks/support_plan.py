"""What a simulated agent is asked to say, carried as the question itself, and what must come out of it. Pure.

The question of each turn is a ``StreamPlan`` as JSON. The simulated agent reads it and streams accordingly; the benchmark computes
from the same plan what text, which messages and which pacing to expect. Every piece of text is the chat's own, so that text
which ends up in another chat is noticed.
"""

import random
from itertools import accumulate

import msgspec
from msgspec import Struct

PARAGRAPH_EVERY = 30
"""Chunks in a paragraph, on average: a blank line now and then, as models write."""

_WORDS = "the order is on its way and will be there today between four and six o clock entrega hoje à tarde 🚚 obrigado".split()


class StreamPlan(Struct, frozen=True, kw_only=True):
    """One answer. ``number`` names the chat and seeds the text; ``is_stamped`` makes the first chunk the sender's clock, in ns."""

    number: int
    num_chunks: int = 120
    chunks_per_s: float = 20.0
    first_ms: float = 300.0
    is_stamped: bool = False

    def question(self) -> str:
        """The plan as the text a user writes."""
        return msgspec.json.encode(self).decode()


def read_plan(question: str) -> StreamPlan:
    """The plan a question carries. Raises msgspec.DecodeError for any other text."""
    return msgspec.json.decode(question, type=StreamPlan)


def pieces(plan: StreamPlan) -> list[str]:
    """The chunks of the answer, in order; a stamped plan's first one is put in front by the sender."""
    rng = random.Random(plan.number)
    found = [f"Chat {plan.number}:"]
    while len(found) < plan.num_chunks:
        word = f" {rng.choice(_WORDS)}"
        is_end = rng.random() * PARAGRAPH_EVERY < 1 and len(found) + 1 < plan.num_chunks
        found.append(f"{word}.\n\n#{plan.number}" if is_end else word)
    return found


def offsets_s(plan: StreamPlan) -> list[float]:
    """Seconds from the request to each chunk: no two gaps alike, their mean as planned."""
    rng = random.Random(-plan.number - 1)
    gaps = [rng.uniform(0.4, 1.6) / plan.chunks_per_s for _ in range(plan.num_chunks - 1)]
    return list(accumulate(gaps, initial=plan.first_ms / 1e3))


def messages(text: str) -> list[str]:
    """The WhatsApp messages an answer must arrive as: one per paragraph."""
    return [paragraph.strip() for paragraph in text.split("\n\n")]


def last_chunks(plan: StreamPlan) -> list[int]:
    """For each message the chunk that completes it; the last message is completed by the end of the run."""
    return [index for index, piece in enumerate(pieces(plan)) if "\n\n" in piece]
