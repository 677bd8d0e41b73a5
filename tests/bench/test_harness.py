"""What a bench prints can be read back, and a figure that fails makes the command fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.__main__ import names, select
from bench.harness import Figure, circumstances, main, parse_figures, table


def test_figures_are_read_back_from_among_other_lines() -> None:
    figures = [Figure.at_least("speedup", 2.5, "x", 2.0), Figure("rate", 1e4, "tokens/s")]
    output = "\n".join(["some table", *(figure.to_json() for figure in figures), "{not a figure}"])
    assert parse_figures(output) == figures


def test_a_reach_is_met_at_its_bound() -> None:
    assert Figure.at_least("a", 2.0, "x", 2.0).holds
    assert Figure.at_most("a", 2.0, "x", 2.0).holds
    assert not Figure.at_least("a", 1.9, "x", 2.0).holds
    assert not Figure.at_most("a", 2.1, "x", 2.0).holds


def test_the_table_says_what_fails() -> None:
    text = table([Figure.at_least("speedup", 1.0, "x", 2.0), Figure("rate", 1e4, "tokens/s")])
    assert "FAILS" in text.splitlines()[1]
    assert "recorded" in text.splitlines()[2]


@pytest.mark.parametrize(("value", "status"), [(3.0, 0), (1.0, 1)])
def test_the_exit_status_is_the_verdict(value: float, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(quick: bool) -> list[Figure]:
        assert quick
        return [Figure.at_least("speedup", value, "x", 2.0)]

    with pytest.raises(SystemExit) as ended:
        main(measure, ["--quick"])
    assert ended.value.code == status
    assert parse_figures(capsys.readouterr().out)[0].value == value


def test_benches_are_found_and_named_by_path_or_last_part(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "speed.py").write_text('yield Figure("a", 1, "s")\nif __name__ == "__main__": ...')
    (tmp_path / "room" / "server.py").write_text('if __name__ == "__main__": ...')
    (tmp_path / "room" / "helper.py").write_text("")
    assert names(tmp_path) == ["room/speed"]
    assert select(["speed"], ["room/speed", "room/size"]) == ["room/speed"]
    assert select([], ["room/speed", "room/size"]) == ["room/speed", "room/size"]
    with pytest.raises(SystemExit, match="no bench sped"):
        select(["sped"], ["room/speed"])


def test_circumstances_name_commit_date_and_load() -> None:
    assert {"commit", "date", "load", "cores"} <= circumstances().keys()


def test_a_bench_that_breaks_off_tells_what_it_has_and_leaves_nothing_to_record(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure(quick: bool) -> Iterator[Figure]:
        yield Figure.at_least("speed", 2.5, "x", 2)
        raise RuntimeError("no disk")

    with pytest.raises(RuntimeError, match="no disk"):
        main(measure, ["--quick"])
    printed = capsys.readouterr().out
    assert "speed: 2.5 x" in printed
    assert parse_figures(printed) == []
