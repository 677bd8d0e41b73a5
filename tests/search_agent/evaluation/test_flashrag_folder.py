"""The folder that FlashRAG's readers expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search_agent.evaluation.flashrag import main
from tests.search_agent.evaluation.test_compare import run, task
from verl.errors import UserError


def test_the_folder_has_items_and_unrounded_means(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", [(task("x", gold="Zürich"), ["Zürich"]), (task("y"), [None]), (task("z"), ["no"])])
    (folder / "config.yaml").write_text("protocol: {plugin: search_agent.protocols.autorefine}\n")
    out = tmp_path / "nq_2026"
    assert main([str(folder), f"out={out}"]) == 0
    assert (out / "metric_score.txt").read_text().splitlines() == [
        f"{name}: {1 / 3}" for name in ("em", "f1", "acc", "precision", "recall")
    ]
    text = (out / "intermediate_data.json").read_text()
    assert '    {\n        "id": "x"' in text  # indented by four
    assert "Zürich" in text  # not escaped
    items = json.loads(text)
    assert items[0]["output"] == {
        "final_response": "<think> x </think><answer> Zürich </answer>",
        "pred": "Zürich",
        "finish_reason": "finished",
        "retrieved_times": 0,
        "metric_score": {"em": 1.0, "f1": 1.0, "acc": 1.0, "precision": 1.0, "recall": 1.0},
    }
    assert items[0]["golden_answers"] == ["Zürich"]
    assert (items[1]["output"]["pred"], items[1]["output"]["metric_score"]["em"]) == ("", 0.0)
    assert (out / "config.yaml").exists()


def test_an_evaluation_is_never_written_over_another(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", [(task("x"), ["yes"])])
    main([str(folder), f"out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="there is something in it already"):
        main([str(folder), f"out={tmp_path / 'out'}"])


@pytest.mark.parametrize("arguments", [[], ["RUN"], ["RUN", "out="], ["RUN", "OTHER", "out=x"]])
def test_a_run_and_a_folder_are_named(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="name one run and out=FOLDER"):
        main(arguments)
