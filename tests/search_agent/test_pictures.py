"""Pictures from a row to the model: one prompt in training and in play, one message to a server, nothing else read."""

from __future__ import annotations

import asyncio
import struct
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from search_agent.data.chat_traces import ChatReader
from search_agent.data.traces import load_traces
from search_agent.environment import Config, build
from search_agent.evaluation.chat_tokens import ChatTokens
from search_agent.evaluation.served import Chatting, Served
from search_agent.openai_client import OpenAIClient
from search_agent.protocols import rare
from tests.search_agent.scripted_server import Scripted
from tests.search_agent.test_environment import Shelf
from tests.verl.tiny_vl import write_picture, write_tiny_vl
from verl.data.pictures import MOST, Pictures, open_picture
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episode import EpisodeKey, run_episode
from verl.rollout.play import GREEDY
from verl.trainer.config import WarmupConfig
from verl.trajectory import Trajectory

PROTOCOL = rare.build(rare.Config())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vl")
    write_tiny_vl(folder)
    return folder


def episodes(folder: Path, framing: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = Config(framing=framing)
    return build(config, protocol=PROTOCOL, tokenizer=tokenizer, retriever=Shelf(), max_context_tokens=900)


async def test_a_prompt_has_the_same_ids_in_training_and_in_play(folder: Path, tmp_path: Path) -> None:
    shown = (write_picture(tmp_path / "a.png", "red"), write_picture(tmp_path / "b.png", "blue", (300, 400)))
    prompt = await episodes(folder, "chat")(Task("t", "q", ("A",), prompt="what is it ?", images=shown)).start()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reader = ChatReader(tokenizer, tokenizer.eos_token, date(2026, 1, 1), Pictures.of(folder))
    trace = reader.read({"instruction": "what is it ?", "predict": "A"}, "row 1", shown)
    assert trace.segments[0].token_ids.tolist() == list(prompt.token_ids)
    assert trace.segments[0].text == prompt.text
    assert trace.images == prompt.images == shown
    assert prompt.text.startswith("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|>")
    pictures = Pictures.of(folder)
    assert pictures is not None
    grids = pictures.pixels(shown)[1]
    assert list(prompt.token_ids).count(pictures.pad) == int(grids.prod(-1).sum()) // 4
    with pytest.raises(UserError, match=r"framing=plain shows no pictures: write chat"):
        await episodes(folder, "plain")(Task("t", "q", ("A",), images=shown)).start()
    with pytest.raises(UserError, match=f"shows {MOST + 1} pictures"):
        pictures.ids(shown[:1] * (MOST + 1))


def test_traces_bring_their_pictures_to_the_learner(folder: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", "red")
    path = tmp_path / "traces.jsonl"
    path.write_text('{"instruction": "what is it ?", "predict": "A", "images": ["a.png"]}\n')
    (sample,) = load_traces(path, PROTOCOL, str(folder), prompts=True, warmup=WarmupConfig(), longest=500)
    assert sample.images == (str(tmp_path / "a.png"),)
    path.write_text('{"instruction": "what is it ?", "predict": "A", "images": ["../a.png"]}\n')
    with pytest.raises(UserError, match=r"row 1: .*\.\./a\.png is no file below"):
        load_traces(path, PROTOCOL, str(folder), prompts=True, warmup=WarmupConfig(), longest=500)


@pytest.mark.parametrize("content", [b"root:x:0:0", b"\x89PNG\r\n\x1a\n", b""])
def test_files_that_are_no_pictures_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for reference in (str(tmp_path / "a.png"), "data:image/png;base64,AAAA", "data:image/png;base64,%", str(tmp_path)):
        with pytest.raises(UserError, match=r"image .*: is no picture that can be read"):
            open_picture(reference)
    with pytest.raises(UserError, match="addresses are not fetched"):
        open_picture("http://localhost/a.png")


@pytest.mark.parametrize("size", [(60000, 60000), (9000, 9000), (1000, 1)])
def test_a_picture_of_no_sane_size_is_refused_before_a_pixel_is_read(tmp_path: Path, size: tuple[int, int]) -> None:
    held = Path(write_picture(tmp_path / "a.bmp", "red", (1, 1))).read_bytes()
    (tmp_path / "a.bmp").write_bytes(held[:18] + struct.pack("<ii", *size) + held[26:])
    with pytest.raises(UserError, match="too many"):
        open_picture(str(tmp_path / "a.bmp"))


def test_a_server_is_shown_the_pictures_in_the_users_message(tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.png", "red")
    server = Scripted(lambda prompt: "<answer>A</answer>")
    task = Task("t", "q", ("A",), prompt="what is it ?", images=(image,))
    config, tokens = Config(framing="chat"), ChatTokens()
    shelf: Any = Shelf()
    make = build(config, protocol=PROTOCOL, tokenizer=tokens, retriever=shelf, max_context_tokens=900)

    async def play() -> Trajectory:
        async with OpenAIClient(Served(server.start(), "m").address) as client:
            return await run_episode(
                task, EpisodeKey(0, "eval", 0, "t", 0), make(task), Chatting(client, tokens), GREEDY
            )

    played = asyncio.run(play())
    assert (played.outcome, played.images) == ("finished", (image,))
    ((shown, text),) = [message["content"] for message in server.asked[0]["messages"]]
    assert shown["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "what is it ?"}


def test_a_picture_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    held = Path(write_picture(tmp_path / "a.png", "red", (300, 300))).read_bytes()
    (tmp_path / "a.png").write_bytes(held[: len(held) // 2])
    with pytest.raises(UserError, match="is damaged"):
        open_picture(str(tmp_path / "a.png"))
