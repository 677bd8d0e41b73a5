"""How long the scorers take: 50,000 predictions against three accepted answers each, on one core.

All five measures of an answer at once. Answers are drawn from words of English-like lengths, a fifth of them beyond
ASCII, a third of them right. ``--quick`` scores a tenth, and is held to a tenth of the time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from bench.harness import Figure, main
from search_agent.evaluation.metrics import ndcg, score_answer

PREDICTIONS = 50_000
REACH_S = 5.0


def figures(quick: bool) -> Iterator[Figure]:
    """Processor seconds for all predictions, and for as many rankings of 100 passages."""
    n = PREDICTIONS // 10 if quick else PREDICTIONS
    rows = list(drawn(n))
    began = time.process_time()
    right = sum(score_answer(answer, golds).em for answer, golds in rows)
    seconds = time.process_time() - began
    yield Figure(f"share right of {n:,}", right / n, "share")
    yield Figure.at_most(f"answers, {n:,} predictions", seconds, "s", REACH_S * n / PREDICTIONS)
    draw = random.Random(1)
    identifiers = [str(number) for number in range(100)]
    grades = [dict.fromkeys(draw.sample(identifiers, 3), 1.0) for _ in range(n)]
    began = time.process_time()
    for one in grades:
        ndcg(identifiers, one, 10)
    yield Figure(f"nDCG@10, {n:,} rankings of 100", time.process_time() - began, "s")


def drawn(n: int) -> Iterator[tuple[str, list[str]]]:
    """Answers with their accepted answers; the same at each call."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlucmfw", k=draw.randint(1, 9))) for _ in range(5000)]
    words += ["".join(draw.choices("éüñøλ東京", k=draw.randint(1, 6))) for _ in range(1250)]
    for _ in range(n):
        golds = [" ".join(draw.choices(["the", "A", *words], k=draw.randint(1, 5))).title() for _ in range(3)]
        yield draw.choice(golds) if draw.random() < 1 / 3 else " ".join(draw.choices(words, k=4)), golds


if __name__ == "__main__":
    main(figures)
