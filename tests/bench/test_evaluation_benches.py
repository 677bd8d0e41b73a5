"""What the benches of scorer and viewer draw is what they claim to measure."""

from __future__ import annotations

import gzip
import json

from bench.evaluation import scorer, viewer
from search_agent.evaluation.metrics import score_answer
from search_agent.protocols import autorefine
from search_agent.viewer.pack import pack
from search_agent.viewer.runs import Run


def test_a_third_of_the_drawn_answers_are_right() -> None:
    rows = list(scorer.drawn(600))
    assert rows == list(scorer.drawn(600))
    assert 0.25 < sum(score_answer(answer, golds).em for answer, golds in rows) / len(rows) < 0.42


def test_drawn_episodes_have_placed_tokens_and_passages() -> None:
    run = Run("drawn", {}, viewer.drawn(16), autorefine.build(autorefine.Config()), viewer.Vocabulary())
    packed = pack([run])
    assert (len(packed.index["questions"]), len(packed.index["columns"]["run"])) == (2, 16)
    _, _, segments = json.loads(gzip.decompress(packed.blocks[0]))[0]
    assert [segment["k"] for segment in segments] == list("pgogog")
    assert len(segments[1]["p"]) == len(segments[1]["l"]) == 20
    assert len(segments[2]["o"]) == 3
