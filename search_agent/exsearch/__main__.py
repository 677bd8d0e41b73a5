"""``PROCEDURE=sft|align|inference|entropy|formate|reward bash cmd/exsearch.sh --ARGUMENT VALUE ... [key=value ...]``

The published steps with their arguments, each over what does its work here: ``sft`` and ``align`` are a run that is a
warm-up alone, ``inference`` an evaluation, ``entropy`` the learner's scoring. Words ``key=value`` go on to the run
(``recipe=exsearch_llama3.1_8b_instruct``). ``API_SEARCH`` names a server of theirs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_agent.console.command import load_config, run_command
from search_agent.exsearch import files
from search_agent.exsearch.arguments import PROCEDURES, read_arguments, training_keys, whole
from verl.errors import UserError

if TYPE_CHECKING:
    from search_agent.config import RunConfig

_RECIPE = "recipe=exsearch_qwen2.5_7b_instruct"


def main(words: Sequence[str]) -> int:
    """Do the step that the environment variable ``PROCEDURE`` names."""
    procedure = os.environ.get("PROCEDURE", "")
    arguments, overrides = read_arguments(procedure, words)
    if procedure in ("sft", "align"):
        return train(arguments, with_recipe(overrides), weighted=procedure == "align")
    if procedure == "inference":
        return infer(arguments, with_recipe(overrides))
    if procedure == "entropy":
        path = measure(arguments, overrides)
    elif procedure == "formate":
        rows = files.read_rows(arguments["inference_file"], _OUTPUT, under="output")
        costs = files.read_rows(arguments["entropy_file"], ("query_id", "log_probs"))
        path = write_training(arguments, files.joined(rows, costs, whole(arguments, "size")))
    else:
        rows = files.read_rows(arguments["inference_file"], _OUTPUT, under="output")
        chosen = rows[whole(arguments, "left") : whole(arguments, "right")]
        path = write_training(arguments, files.rewarded(chosen, arguments["metric"]))
    print(path)
    return 0


_OUTPUT = ("query_id", "answer", "pred", "messages")


def with_recipe(overrides: Sequence[str]) -> list[str]:
    """The overrides after a recipe, and the retriever that ``API_SEARCH`` names, unless they say otherwise."""
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    first = [] if "recipe" in keys else [_RECIPE]
    server = os.environ.get("API_SEARCH")
    if server and "retriever" not in keys:
        first += [f"retriever={server}", "client.dialect=api_search", "expected_retriever=null"]
    return [*first, *overrides]


def weights_of(model: str) -> str:
    """The model that a step was told: for the folder that ``sft`` or ``align`` wrote, the weights it came to.

    Raises UserError for the folder of a run that has not come to an end.
    """
    run = Path(model)
    if not (run / "config.yaml").exists():
        return model
    if not (run / "summary.json").exists():
        raise UserError(f"--model_name_or_path {model}: a run that is not finished: give its command again first")
    return str(run / "best_dev")


def train(arguments: dict[str, str], overrides: list[str], *, weighted: bool) -> int:
    """A warm-up alone on the file's rows; ``sft`` drops their weights, as published."""
    from search_agent.train import main as train_main

    rows = files.read_rows(arguments["dataset_name_or_path"], ("messages",))[: whole(arguments, "max_samples")]
    folder = Path(arguments["output_dir"])
    traces = folder.with_name(f"{folder.name}.traces.json")  # beside the run's folder, which is the run's alone
    text = json.dumps(files.weighed(rows, use=weighted), ensure_ascii=False)
    if not traces.exists() or traces.read_text(encoding="utf-8") != text:
        traces.parent.mkdir(parents=True, exist_ok=True)
        traces.write_text(text, encoding="utf-8")
    ranks = load_config([*overrides, f"data.traces={traces}"]).cluster.learner_ranks
    arguments = {**arguments, "model_name_or_path": weights_of(arguments["model_name_or_path"])}
    keys = [*training_keys(arguments, len(rows), ranks), f"data.traces={traces}"]
    print("bash cmd/train.sh", *overrides, *keys)
    return train_main([*overrides, *keys])


def infer(arguments: dict[str, str], overrides: list[str]) -> int:
    """One sampled episode of each question, and the published file of them."""
    from search_agent.evaluate import evaluated_config
    from search_agent.evaluate import main as evaluate_main

    left, right = whole(arguments, "left"), whole(arguments, "right")
    source, folder = (Path(arguments[key]) for key in ("input_file", "output_dir"))
    model = weights_of(arguments["model_name_or_path"])
    rows = files.read_rows(source, ("query_id", "question", "answer"))
    name = Path(arguments["model_name_or_path"]).name
    stem = f"{source.resolve().parent.name}_{source.stem}.{name}.inference.{left}.{right}"
    path, run = folder / f"{stem}.json", folder / f"{stem}.run"
    if path.exists():
        raise UserError(f"{path} is there already: move it away, or write another --output_dir")
    run.mkdir(parents=True, exist_ok=True)
    questions = run / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(task)}\n" for task in files.tasks_of(rows, left, right)), "utf-8")
    words = [
        *overrides,
        f"model={model}",
        f"data.test={questions}",
        f"run_dir={run}",
        "evaluation.test_tasks=null",
        "evaluation.decodings=[{name: sampled, temperature: 0.8, top_p: 0.95}]",
    ]
    evaluate_main(words)
    output = played(evaluated_config(words), run, model, rows)
    print(files.write_json(path, {"score": files.score(output), "output": output, "config": arguments}))
    return 0


def played(config: RunConfig, run: Path, model: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The run's episodes as rows, in the order of the questions."""
    from transformers import AutoTokenizer

    from search_agent.exsearch.chats import messages_of, selections_of
    from search_agent.protocols.framing import make_framing
    from verl.rollout.episodes import read_run

    protocol: Any = config.protocol.build()
    limits: Any = config.environment.config
    framing = make_framing(
        limits.framing,
        AutoTokenizer.from_pretrained(model),
        system=protocol.system,
        probe=protocol.prompt("who?"),
        prefill=protocol.prefill,
        today=date.fromisoformat(limits.date),
    )
    asked = {str(row["query_id"]): row for row in rows}
    found = {}
    for episode in read_run(run):
        trajectory, row = episode.trajectory, asked[episode.task.id]
        found[episode.task.id] = {
            "query_id": row["query_id"],
            "question": row["question"],
            "answer": row["answer"],
            "pred": protocol.read(trajectory).answer or "",
            "finished": trajectory.outcome == "finished",
            "messages": messages_of(trajectory, framing),
            "rank": selections_of(trajectory, framing),
        }
    return [found[name] for name in asked if name in found]


def measure(arguments: dict[str, str], overrides: Sequence[str]) -> Path:
    """The mean cost of each accepted answer under a model: on one device, or under torchrun on several."""
    import torch.distributed as dist

    from search_agent.data.traces import NO_DAY
    from search_agent.exsearch.chats import gold_samples
    from verl.algorithms.config import LossConfig
    from verl.config.arguments import parse
    from verl.learner.__main__ import Settings, join_group
    from verl.learner.learner import Learner
    from verl.learner.phase import Phase

    left, right, epo = (whole(arguments, key) for key in ("left", "right", "epo"))
    path = Path(arguments["output_dir"]) / f"epo_{epo}.entropy.{left}.{right}.json"
    rows = files.read_rows(arguments["inference_file"], _OUTPUT, under="output")[left:right]
    rows = [row for row in rows if row.get("finished", True)]
    model = Path(weights_of(arguments["model_name_or_path"]))
    samples = gold_samples(rows, model, date.fromisoformat(NO_DAY))
    settings = parse(Settings, overrides)
    longest = settings.learner.longest_sequence
    kept = [(row, sample) for row, sample in zip(rows, samples, strict=True) if len(sample) <= longest]
    if not kept:
        raise UserError(f"{arguments['inference_file']}: no row from {left} to {right} that can be scored")
    join_group()
    learner = Learner(model, settings.learner, seed=0)
    learner.begin_phase(Phase(settings.optimizer, LossConfig(name="weighted_nll"), batches=1))
    logprobs = learner.logprobs([sample for _, sample in kept])
    if dist.get_rank() == 0:
        pairs = zip(kept, logprobs, strict=True)
        costs = [
            {
                "log_probs": -float(row_logprobs.sum(dtype="float64")) / sample.num_policy_tokens,
                "query_id": r["query_id"],
            }
            for (r, sample), row_logprobs in pairs
        ]
        files.write_json(path, costs)
    dist.destroy_process_group()
    return path


def write_training(arguments: dict[str, str], rows: list[dict[str, Any]]) -> Path:
    """The training file of this round, by the published name."""
    name = f"epo{whole(arguments, 'epo')}.training.len{len(rows)}.json"
    return files.write_json(Path(arguments["output_dir"]) / name, rows)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{__doc__}\nPROCEDURE is one of {', '.join(PROCEDURES)}; arguments: docs/recipes.md")
        sys.exit(0)
    sys.exit(run_command(main, sys.argv[1:]))
