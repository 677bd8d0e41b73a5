"""The preliminary experiment: losses by kind of token, the model with four more tokens, how entities are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preprocess.embedded.tiny_model import train_tokenizer, write_model
from preprocess.rare import entities, knowledge, special
from preprocess.rare.entities import build
from preprocess.rare.special import TOKENS
from search_agent.protocols.rare import closed_book, open_book
from verl.config.arguments import parse
from verl.config.build import Plugin
from verl.errors import UserError

DOCUMENTS = "Ada Byron was born in London. She wrote of the Engine."
QUESTION, ANSWER = "where was she born ?", "the text says London so it is London"


pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([f"{DOCUMENTS} {QUESTION} {ANSWER}"] * 3, folder)
    write_model(folder, len(tokenizer), 1)
    return folder


def files(folder: Path, rows: int = 3) -> list[str]:
    prompt = open_book(DOCUMENTS, QUESTION, "history")
    said = [{"id": n, "instruction": prompt, "predict": f"{ANSWER} {'so ' * n}"} for n in range(rows)]
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    return [f"taught={folder / 'all.jsonl'}", f"out={folder / 'out'}"]


def theirs(model: Path, context: list[int], answer: list[int], known: set[int]) -> tuple[float, float]:
    """Mean loss of the answer's tokens that are known, and of the others, by transformers' own forward."""
    lm = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        logits = lm(torch.tensor([[*context, *answer]])).logits[0, len(context) - 1 : -1]
    losses = -logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    inside = torch.tensor([token in known for token in answer])
    return losses[inside].mean().item(), losses[~inside].mean().item()


def test_losses_are_the_models_by_kind_and_share_of_the_documents(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*files(tmp_path), f"model={model}"]
    config = parse(knowledge.Config, words)
    rows = knowledge.read(config)
    assert [row.documents for row in rows] == [DOCUMENTS] * 3
    found = knowledge.measure(config, rows)
    assert [(row["id"], row["quarters"]) for row in found[:6]] == [*(("0", n) for n in range(5)), ("1", 0)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    known = {
        t
        for name in ("Ada Byron", "London", "She", "Engine")
        for s in ("", " ")
        for t in tokenizer(s + name)["input_ids"]
    }
    answer = tokenizer(rows[0].answer)["input_ids"]
    for quarters, shown in ((0, ""), (2, DOCUMENTS[: len(DOCUMENTS) // 2]), (4, DOCUMENTS)):
        context = [*tokenizer(f"{QUESTION}\n{shown}")["input_ids"], *tokenizer("\n")["input_ids"]]
        expected = theirs(model, context, answer, known)
        assert (found[quarters]["knowledge"], found[quarters]["reasoning"]) == pytest.approx(expected, abs=1e-5)
    means = knowledge.summary(found)
    knowledge.draw(means, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert len(knowledge.table(means).splitlines()) == 6
    assert means["knowledge"][0].n == 3


def test_one_command_writes_table_and_picture(model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("verl.learner.__main__.join_group", lambda: "cpu")  # this process is in one
    assert knowledge.main([*files(tmp_path), f"model={model}", "rows=2"]) == 0
    assert "2 of 2 answers hold tokens of both kinds" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["loss.png", "report.json", "rows.jsonl"]


def test_entities_are_a_plug_in_with_capitals_as_fallback() -> None:
    find = build(entities.Config())
    assert find("in London, Ada Byron met the King of Spain's aide; no one else") == [
        "London",
        "Ada Byron",
        "King of Spain's",
    ]
    assert find("nothing here") == []
    assert build(entities.Config(pattern="(?<=by )[a-z]+ [a-z]+"))("written by mara morrow.") == ["mara morrow"]
    for pattern, why in (("(a)", "captures 1 groups"), ("(", "is no regular expression")):
        with pytest.raises(UserError, match=why):
            entities.Config(pattern=pattern)
    with pytest.raises(UserError, match=r"entities\.spacy=en_core_web_sm: install spacy and that pipeline"):
        build(entities.Config("en_core_web_sm"))


def test_answers_without_such_tokens_are_told(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    words = [*files(tmp_path), f"model={model}"]
    monkeypatch.setattr("preprocess.rare.entities.build", lambda config: lambda text: [])
    config = parse(knowledge.Config, words)
    found = knowledge.measure(config, knowledge.read(config))
    assert {row["knowledge"] for row in found} == {None}
    with pytest.raises(UserError, match="name other entities"):
        knowledge.summary(found)
    (tmp_path / "all.jsonl").write_text(json.dumps({"instruction": "another prompt", "predict": "x"}) + "\n")
    with pytest.raises(UserError, match="no answer in it to a prompt"):
        knowledge.read(config)


def test_a_prompt_gives_back_its_documents_and_its_question() -> None:
    hostile = "a\n\n# Question\nb\n# Retrieved Documents\nc"
    for name in ("", "medicine"):
        assert closed_book(open_book(hostile, QUESTION, name)) == (hostile, QUESTION)
        assert closed_book(open_book("", QUESTION, name))[0] == ""
    assert closed_book("another prompt")[0] == ""


def test_four_tokens_are_added_and_the_old_ones_are_as_likely_among_themselves(model: Path, tmp_path: Path) -> None:
    before, words = AutoTokenizer.from_pretrained(model), [f"model={model}", f"out={tmp_path / 'special'}"]
    assert special.main(words) == 0
    after = AutoTokenizer.from_pretrained(tmp_path / "special")
    assert after.convert_tokens_to_ids(list(TOKENS)) == [len(before) + n for n in range(4)]
    assert after("[REASONING]")["input_ids"] == [len(before) + 3]
    ids = torch.tensor([before(DOCUMENTS)["input_ids"]])
    with torch.no_grad():
        old = AutoModelForCausalLM.from_pretrained(model)(ids).logits
        new = AutoModelForCausalLM.from_pretrained(tmp_path / "special")(ids).logits
    torch.testing.assert_close(new[..., : old.shape[-1]], old)
    row = knowledge.Row("1", QUESTION, DOCUMENTS, ANSWER)
    for sample in knowledge.samples_of(row, after):
        assert sample.token_ids[int(sample.policy_mask.argmax()) - 1] == len(before) + 3
    with pytest.raises(UserError, match="is there already"):
        special.main(words)


def test_entities_of_ones_own_are_named_by_import_path(model: Path, tmp_path: Path) -> None:
    words = [*files(tmp_path), f"model={model}"]
    ours = Plugin("preprocess.rare.entities", entities.Config())
    assert knowledge.configured(words).entities == parse(knowledge.Config, words).entities == ours
    assert knowledge.configured([*words, "entities.pattern=London"]).entities.config.pattern == "London"
    with pytest.raises(UserError, match=r"entities\.plugin"):
        knowledge.configured([*words, "entities.plugin=no.such.module"])
