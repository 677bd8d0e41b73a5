"""A teacher is asked through OpenAI's wire format: rejection sampling that stops, goes on, and counts what it costs."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from preprocess.rare.sample import Attempts, Config, main, sample
from search_agent.standins.serving import serve
from tests.verl.tiny_vl import write_picture
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError

KEY = "sk-secret"
TASKS = [Task(f"t{n}", f"q{n}", ("B",), {}, f"prompt {n}") for n in range(6)]


class Teacher:
    """Says B to prompt n at its n-th request, and A before; fails as it is told."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.status: dict[int, int] = {}
        """Status of the request of that number, from 0."""
        self.finish = "stop"
        app = FastAPI()
        app.post("/v1/chat/completions", response_model=None)(self.answer)
        self.url = f"{serve(app)}/v1"

    async def answer(self, request: Request) -> JSONResponse:
        body = await request.json()
        number, prompt = len(self.asked), body["messages"][0]["content"]
        self.asked.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if (status := self.status.get(number, 200)) != 200:
            return JSONResponse({"error": "no"}, status)
        earlier = sum(one["messages"][0]["content"] == prompt for one in self.asked[:-1])
        letter = "B" if earlier >= int(str(prompt).split()[-1]) else "A"
        message = {"content": f"<answer>{letter}</answer>", "reasoning_content": "so it is"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return JSONResponse({"choices": [{"message": message, "finish_reason": self.finish}], "usage": usage})


@pytest.fixture
def teacher() -> Teacher:
    return Teacher()


def config(teacher: Teacher, out: Path, **keys: Any) -> Config:
    return Config(
        **{"tasks": "", "out": str(out), "url": teacher.url, "model": "qwq", "rounds": 4, "retries": 0, **keys}
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_task_is_asked_until_it_is_right_or_its_rounds_are_over(teacher: Teacher, tmp_path: Path) -> None:
    report = asyncio.run(sample(config(teacher, tmp_path, price_in=1e5, price_out=2e5), TASKS))
    assert len(teacher.asked) == 1 + 2 + 3 + 4 + 4 + 4
    assert report["right_by_round"] == {1: 1, 2: 1, 3: 1, 4: 1}
    assert (report["right"], report["accuracy"]) == (4, 1 / 6)
    assert report["rows"] == {"all.jsonl": 6, "right.jsonl": 4, "labelled.jsonl": 6}
    assert report["dollars"] == pytest.approx(18 * (10 * 0.1 + 5 * 0.2))
    labelled = {row["id"]: row for row in rows(tmp_path / "labelled.jsonl")}
    assert [labelled[f"t{n}"]["label"] for n in range(6)] == [True] * 4 + [False] * 2
    assert labelled["t5"]["predict"] == "<think>\nso it is\n</think>\n<answer>A</answer>"
    assert all("label" not in row for row in rows(tmp_path / "all.jsonl"))
    seeds = [body["seed"] for body in teacher.asked]
    assert len(set(seeds)) == len(seeds)
    assert "B" not in json.dumps([body["messages"] for body in teacher.asked]), "the accepted answer is not shown"


def test_a_stopped_sampling_goes_on_with_what_was_said(teacher: Teacher, tmp_path: Path) -> None:
    teacher.status[7] = 500
    with pytest.raises(InfrastructureError, match="status 500"):
        asyncio.run(sample(config(teacher, tmp_path, workers=1), TASKS))
    kept = (tmp_path / "attempts.jsonl").read_text()
    assert kept.count("\n") == 7
    (tmp_path / "attempts.jsonl").write_text(kept + '{"id": "t3", "rou')
    report = asyncio.run(sample(config(teacher, tmp_path, workers=3), TASKS))
    assert len(teacher.asked) == 18  # the one that failed counts at the stand-in, so t3 is right a request sooner
    assert report["replies"] == len(rows(tmp_path / "attempts.jsonl")) == 17
    asyncio.run(sample(config(teacher, tmp_path), TASKS))
    assert len(teacher.asked) == 18, "nothing is asked twice"
    with pytest.raises(UserError, match="begun with another temperature"):
        asyncio.run(sample(config(teacher, tmp_path, temperature=0.1), TASKS))


def test_a_failure_is_tried_again_and_a_refused_row_is_left_out(teacher: Teacher, tmp_path: Path) -> None:
    teacher.status = {0: 503, 1: 400}
    report = asyncio.run(sample(config(teacher, tmp_path, workers=1, retries=3), TASKS[:2]))
    assert report["dropped"] == {"refused by the server": 1}
    assert report["tasks"] == 2
    assert [row["id"] for row in rows(tmp_path / "all.jsonl")] == ["t1"]


def test_a_reply_that_ran_into_its_limit_is_wrong_and_not_learned_from(teacher: Teacher, tmp_path: Path) -> None:
    teacher.finish = "length"
    report = asyncio.run(sample(config(teacher, tmp_path, rounds=1), TASKS[:2]))
    assert (report["accuracy"], report["dropped"]) == (0, {"ran into max_tokens": 2})


def test_a_wrong_key_is_the_users_mistake_and_is_not_shown(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    teacher.status[0] = 401
    with pytest.raises(UserError, match="status 401") as caught:
        asyncio.run(sample(config(teacher, tmp_path, key_variable="TEACHER_KEY", workers=1), TASKS))
    assert KEY not in str(caught.value)
    assert teacher.keys == [f"Bearer {KEY}"]
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"id": 1, "question": "q", "prompt": "prompt 0", "golden_answers": ["B"]}) + "\n")
    words = [f"tasks={tasks}", f"out={tmp_path / 'o'}", f"url={teacher.url}", "model=qwq", "retries=0"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1
    teacher.status[len(teacher.asked)] = 500
    assert main([word.replace("/o", "/p") if word.startswith("out") else word for word in words]) == 1
    assert "the same command goes on" in capsys.readouterr().err


def test_pictures_go_along_as_data(teacher: Teacher, tmp_path: Path) -> None:
    held = Path(write_picture(tmp_path / "a.png", "red")).read_bytes()
    task = Task("t", "q", ("B",), {}, "prompt 0", (str(tmp_path / "a.png"),))
    teacher.status[0] = 400
    asyncio.run(sample(config(teacher, tmp_path / "out"), [task]))
    shown, text = teacher.asked[0]["messages"][0]["content"]
    assert shown == {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(held).decode()}"},
    }
    assert text == {"type": "text", "text": "prompt 0"}


def test_attempts_of_an_earlier_start_are_read(tmp_path: Path) -> None:
    first = Attempts(tmp_path / "a.jsonl")
    first.add({"id": "1", "round": 0})
    first.close()
    again = Attempts(tmp_path / "a.jsonl")
    assert again.of == {"1": [{"id": "1", "round": 0}]}
    again.close()
