"""The built folder: the same bytes from the same seed, readable by transformers and by the trajectory ledger."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from time import sleep

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from preprocess.embedded import Config, build_world, source
from preprocess.embedded import __main__ as command
from search_agent.data.source import Source
from verl.errors import UserError
from verl.trajectory import Trajectory


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(Config(out=str(tmp_path_factory.mktemp("world")), traces=200))


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_seed_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    again = build_world(Config(out=str(tmp_path), traces=200))
    assert (again / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()


def test_the_manifest_counts_what_stands_in_the_files(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["rows"]["traces.jsonl"] == 200
    for name, count in manifest["rows"].items():
        assert len(rows(built / name)) == count
    assert set(manifest["rows"]) < set(manifest["sha256"])


def test_questions_and_passages_have_the_flashrag_layout(built: Path) -> None:
    for path in ("train.jsonl", "test.jsonl", "dev/dev.jsonl", "clean/test.jsonl"):
        assert all(set(row) == {"id", "question", "golden_answers", "metadata"} for row in rows(built / path))
    for path in ("corpus.jsonl", "dev/corpus.jsonl", "clean/corpus.jsonl"):
        assert all(str(row["contents"]).startswith('"') for row in rows(built / path))


def test_traces_decode_to_their_texts_and_encode_to_their_ids(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(built / "model"))
    for row in rows(built / "traces.jsonl"):
        for segment in Trajectory.from_record(row).segments:
            assert tokenizer.decode(segment.token_ids.tolist()) == segment.text
            if segment.kind != "observation":
                assert tokenizer.encode(segment.text, add_special_tokens=False) == segment.token_ids.tolist()


def test_every_word_of_every_name_is_one_token(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(built / "model"))
    titles = [str(row["contents"]).split("\n")[0].strip('"') for row in rows(built / "corpus.jsonl")]
    assert all(len(tokenizer.encode(f" {title}", add_special_tokens=False)) == 2 for title in titles)


def test_the_model_fits_its_tokenizer(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(built / "model"))
    model = AutoModelForCausalLM.from_pretrained(str(built / "model"))
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.tie_word_embeddings
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    assert (
        sum(p.numel() for p in model.parameters())
        == json.loads((built / "manifest.json").read_text())["model_parameters"]
    )


def test_the_chat_template_renders_turns(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(built / "model"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_wrong_key_or_size_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^sed: no such key.*seed"):
        command.main([f"out={tmp_path}", "sed=1"])
    with pytest.raises(UserError, match="traces=1:"):
        Config(out=str(tmp_path), traces=1)


def test_a_world_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match=r"embedded-v.*Not a directory; run it from a folder that can be written"):
        source.build(source.Config(), out=tmp_path / "data", seed=0)


def test_a_world_that_several_runs_want_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds, several = [], Barrier(3)

    def build_slowly(config: Config) -> Path:
        builds.append(config)
        sleep(0.05)
        root = Path(config.out)
        root.mkdir(parents=True, exist_ok=True)
        (root / "manifest.json").write_text("{}")
        return root

    def one_run(_: int) -> Source:
        several.wait()
        return source.build(source.Config(), out=tmp_path, seed=0)

    monkeypatch.setattr(source, "build_world", build_slowly)
    with ThreadPoolExecutor(3) as runs:
        assert len(set(map(repr, runs.map(one_run, range(3))))) == 1
    assert len(builds) == 1
