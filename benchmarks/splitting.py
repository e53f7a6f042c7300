"""What it costs to split a growing answer into messages, per chunk of 5 characters.

    python benchmarks/splitting.py

CPU time per chunk for answers of 1,000 and of 200,000 chunks: prose in paragraphs, prose without a blank line and text without any place
to cut. The cost must not grow with the answer; the last rows are the growth from the short answer to the long one. Values are
medians of several rounds.
"""

import statistics
import time
from collections.abc import Sequence

from omni.channels.whatsapp.splitter import ParagraphSplitter

Row = tuple[str, float, str, float | None]
"""Name, value, unit, budget (None where there is none)."""

CHUNK_CHARS = 5
NUM_CHUNKS = (1_000, 200_000)
# Short answers are split often enough in a round to be measured at all.
CHUNKS_PER_ROUND = 200_000
NUM_ROUNDS = 5

BUDGET_US = 5.0
# A quadratic splitter would grow two hundredfold.
BUDGET_GROWTH = 3.0

SENTENCE = "Uma frase de exemplo com palavras. "
ANSWERS = {
    "prose in paragraphs": SENTENCE * 12 + "\n\n",
    "prose without a blank line": SENTENCE,
    "one word without an end": "palavra",
}


def measure() -> list[Row]:
    rows: list[Row] = []
    growths: list[Row] = []
    for name, unit_text in ANSWERS.items():
        costs = [_cost_us(_chunks(unit_text, num_chunks)) for num_chunks in NUM_CHUNKS]
        for num_chunks, cost_us in zip(NUM_CHUNKS, costs, strict=True):
            rows.append((f"{name}, {num_chunks:,} chunks", cost_us, "us/chunk", BUDGET_US))
        growths.append((f"{name}: growth per chunk", costs[1] / costs[0], "times", BUDGET_GROWTH))
    return rows + growths


def _chunks(unit_text: str, num_chunks: int) -> list[str]:
    num_chars = num_chunks * CHUNK_CHARS
    text = (unit_text * (num_chars // len(unit_text) + 1))[:num_chars]
    return [text[start : start + CHUNK_CHARS] for start in range(0, num_chars, CHUNK_CHARS)]


def _cost_us(chunks: Sequence[str]) -> float:
    num_answers = CHUNKS_PER_ROUND // len(chunks)
    costs = []
    for _ in range(NUM_ROUNDS):
        begin = time.process_time()
        for _ in range(num_answers):
            splitter = ParagraphSplitter()
            for chunk in chunks:
                splitter.feed(chunk)
            splitter.finish()
        costs.append((time.process_time() - begin) / (num_answers * len(chunks)) * 1e6)
    return statistics.median(costs)


if __name__ == "__main__":
    for what, value, unit, budget in measure():
        print(f"{what:<50} {value:>10.3f} {unit:<10} budget {budget}")
