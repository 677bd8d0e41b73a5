"""Words of a command line become checked configurations, alike for every small command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from verl.config.arguments import parse, run
from verl.config.build import Plugin
from verl.errors import UserError


@dataclass(frozen=True)
class Inner:
    """A nested group."""

    name: str = ""
    """Text."""
    size: int = 0
    """A number."""


@dataclass(frozen=True)
class Outer:
    """Every kind of field."""

    inner: Inner | None = None
    """Group."""
    path: Path | None = None
    """Path."""
    rate: float = 0.5
    """Number."""
    flag: bool = False
    """Switch."""
    kind: Literal["a", "b"] = "a"
    """Choice."""
    names: tuple[str, ...] = ()
    """Words."""
    sizes: tuple[int, ...] = ()
    """Numbers."""
    part: Plugin | None = None
    """Plug-in."""


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("rate=1e-5", Outer(rate=1e-5)),
        ("rate=2", Outer(rate=2.0)),
        ("flag=true", Outer(flag=True)),
        ("kind=b", Outer(kind="b")),
        ("path=2024", Outer(path=Path("2024"))),
        ("path=null", Outer(path=None)),
        ("path=a=b", Outer(path=Path("a=b"))),
        ("inner.name=1984", Outer(inner=Inner(name="1984"))),
        ("inner.size=7", Outer(inner=Inner(size=7))),
        ("inner=null", Outer()),
        ("names=x, y", Outer(names=("x", "y"))),
        ("names=7", Outer(names=("7",))),
        ('names=["a,b"]', Outer(names=("a,b",))),
        ("names=[x,y]", Outer(names=("x", "y"))),
        ("names=", Outer()),
        ("sizes=1,2", Outer(sizes=(1, 2))),
        ("sizes=[1,2]", Outer(sizes=(1, 2))),
    ],
)
def test_a_word_is_read_as_its_field_asks(word: str, expected: Outer) -> None:
    assert parse(Outer, [word]) == expected


def test_the_last_word_for_a_key_counts() -> None:
    assert parse(Outer, ["rate=1", "inner.size=1", "rate=3", "inner.name=x"]) == Outer(Inner("x", 1), rate=3.0)


def test_keys_of_a_plug_in_go_to_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["from dataclasses import dataclass", "@dataclass(frozen=True)", "class Config:", "    depth: int = 1"]
    (tmp_path / "some_part.py").write_text("\n".join([*lines, "def build(config): return config"]))
    monkeypatch.syspath_prepend(str(tmp_path))
    built = parse(Outer, ["part.plugin=some_part", "part.depth=4"]).part
    assert built is not None
    assert (built.module, built.config.depth) == ("some_part", 4)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["nonsense", "rate=1", "more"], ["nonsense: write key=value", "more: write key=value"]),
        (["ratte=1"], ["ratte: no such key; did you mean rate"]),
        (["inner.nam=1", "flag=1"], ["inner.nam: no such key", "flag: expected bool"]),
        (["rate=1", "rate.x=2"], ["rate.x=2: rate has a value already"]),
    ],
)
def test_what_is_wrong_is_one_line_each(words: list[str], lines: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(Outer, words)
    said = str(caught.value).splitlines()
    assert len(said) == len(lines)
    for line, start in zip(said, lines, strict=True):
        assert line.startswith(start)


def test_an_entry_point_ends_with_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: object) -> int:
        raise UserError("no such file")

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such file\n"
