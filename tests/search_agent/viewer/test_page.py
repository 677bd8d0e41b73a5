"""What is packed into a page, and what stands in its file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from search_agent.viewer import __main__ as command
from search_agent.viewer.document import served_page, static_page
from search_agent.viewer.pack import BLOCK, Packed, pack
from search_agent.viewer.runs import curves, names_of, read_run
from search_agent.viewer.serve import make_server
from tests.search_agent.viewer.support import ASHBY, EVIL, search_episode, small_run, write_run
from verl.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack([read_run(small_run(tmp_path_factory.mktemp("runs") / "small"))])


def column(packed: Packed, name: str) -> list[Any]:
    values, names = packed.index["columns"][name], packed.index["names"].get(name)
    return [names[value] if names and value is not None else value for value in values]


def test_the_index_has_a_row_for_each_episode_in_the_order_of_the_run(packed: Packed) -> None:
    assert column(packed, "stage") == ["test-before-greedy", *["train"] * 4, "test-after-greedy"]
    assert column(packed, "outcome")[-2:] == ["aborted", "finished"]
    assert column(packed, "answer") == ["Malden", "Ashby", "Malden", EVIL, None, "Ashby"]
    assert column(packed, "evidence")[:2] == [1, 1]
    assert column(packed, "staleness") == [None, 0, 0, 0, None, None]
    assert packed.index["parts"]["em"] == [0, 1, 0, 1, None, 1]
    assert column(packed, "right") == [0, 1, 0, 1, None, 1]


def test_a_reward_that_measures_no_exact_match_is_judged_by_the_answer(tmp_path: Path) -> None:
    rows = [(ASHBY, search_episode(ASHBY, 0, answer=answer)) for answer in ("Ashby", "Malden")]
    for _, trajectory in rows:
        trajectory.reward_parts = {"taste": 0.5}
    packed = pack([read_run(write_run(tmp_path / "run", {("train", 1): rows}))])
    assert column(packed, "right") == [1, 0]


def test_credit_is_the_reward_above_the_mean_of_the_group(packed: Packed) -> None:
    assert column(packed, "credit") == [None, 0.5, -0.5, None, None, None]


def test_a_block_holds_the_whole_episode(packed: Packed) -> None:
    reason, gains, segments = json.loads(gzip.decompress(packed.blocks[0]))[0]
    assert (reason, gains) == ("", [0.5, 0.5, 0])
    assert [segment["k"] for segment in segments] == list("pgogog")
    assert segments[1]["l"] == [50, 250]
    assert [kind for kind, *_ in segments[1]["x"]] == ["think", "search"]
    found = [["red-sky", 7.5, "Red Sky"], ["other-0", 1.25, "Other"]]
    assert segments[2]["c"] == [["search", "Red Sky", 4, 0, None, found]]


def test_curves_are_counted_from_the_end_of_the_warm_up() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "warmup/loss": 2.0},
        {"step": 2, "warmup/loss": 1.0},
        {"step": 3, "time": 5.0, "reward": None},
    ]
    rows.append({"step": 4, "time": 6.0, "reward": 0.123456789})
    assert curves(rows) == {"warmup/loss": [[1, 2], [2.0, 1.0]], "reward": [[2], [0.12346]]}


def test_many_episodes_fill_many_blocks(tmp_path: Path) -> None:
    rows = [(ASHBY, search_episode(ASHBY, sample, answer="Ashby")) for sample in range(BLOCK + 1)]
    packed = pack([read_run(write_run(tmp_path / "run", {("train", 1): rows}))])
    assert [len(json.loads(gzip.decompress(block))) for block in packed.blocks] == [BLOCK, 1]


def test_the_file_holds_no_text_of_a_run_and_allows_its_own_script_alone(packed: Packed) -> None:
    page = "".join(static_page(packed))
    for text in ("harmed", "Ashby", "test-before", "Red Sky"):
        assert text not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert "connect-src 'none'" in policy[1]
    assert not re.search(r"\b(?:src|href)=[\"']?(?:https?:)?//", page)


def test_the_script_sets_texts_and_never_markup() -> None:
    for file in (ROOT / "search_agent" / "viewer" / "page").glob("*.js"):
        text = file.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in text, f"{file.name}: {word}"


def test_the_page_is_packaged() -> None:
    assert '"search_agent.viewer": ["page/*"]' in (ROOT / "setup.py").read_text()


@contextmanager
def serving(packed: Packed) -> Iterator[int]:
    with make_server(packed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", f"{host}:{port}")
    connection.endheaders()
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_served_blocks_come_one_by_one(packed: Packed) -> None:
    with serving(packed) as port:
        assert get(port, "/") == (200, served_page(packed).encode())
        assert get(port, "/block/0") == (200, packed.blocks[0])
        for path in ("/block/1", "/block/-1", "/block/", "/block/x", "/block/0000000000000", "/etc"):
            assert get(port, path)[0] == 404


def test_a_page_of_somebody_else_cannot_ask(packed: Packed) -> None:
    with serving(packed) as port:
        assert get(port, "/", host="evil.example")[0] == 421
        assert get(port, "/block/0", host="evil.example")[0] == 421


def test_the_command_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run(tmp_path / "run")
    assert command.main([str(run)]) == 0
    assert (run / "viewer.html").read_text().startswith("<!doctype html>")
    assert "6 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a run"),
        (["RUN", "--watch"], "--watch: no such option"),
        (["RUN", "outt=x"], "outt: no such option"),
        (["RUN", "--serve", "port=x"], "port=x: write a number"),
    ],
)
def test_a_wrong_command_line_says_what_to_write(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        command.read_arguments(arguments)
    assert "python -m search_agent.viewer RUN" in str(caught.value)


def test_a_folder_without_episodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trajectories"):
        read_run(tmp_path)


def test_what_is_too_large_for_a_file_is_to_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="write --serve"):
        command.main([str(small_run(tmp_path / "run"))])


def test_runs_of_one_name_are_told_apart_by_where_they_stand(tmp_path: Path) -> None:
    assert names_of([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert names_of([tmp_path / "a" / "one", tmp_path / "b" / "two"]) == ["one", "two"]
    assert names_of([tmp_path / "run", tmp_path / "run"]) == ["run", "run"]
