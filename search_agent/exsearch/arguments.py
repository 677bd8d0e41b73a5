"""The published arguments of each ``PROCEDURE``, and the keys of a run that those of training stand for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import NoReturn

from verl.errors import UserError

PROCEDURES = ("sft", "align", "inference", "entropy", "formate", "reward")
NEEDED = "?"
_TRAINING = {
    "model_name_or_path": NEEDED,
    "dataset_name_or_path": NEEDED,
    "output_dir": "../output",
    "max_samples": "1000",
    "per_device_train_batch_size": "1",
    "gradient_accumulation_steps": "2",
    "learning_rate": "1e-4",
    "num_train_epochs": "3",
    "lr_scheduler_type": "cosine",
    "warmup_ratio": "0.1",
    "save_steps": "500",
    "finetuning_type": "full",
}
IGNORED = (
    *("stage", "do_train", "deepspeed", "cutoff_len", "overwrite_cache", "preprocessing_num_workers", "run_name"),
    *("remove_unused_columns", "report_to", "logging_steps", "plot_loss", "overwrite_output_dir", "bf16", "fp16"),
    *("resume_from_checkpoint", "ddp_timeout", "shuffle", "is_rank", "add_warmup"),
)
"""Accepted, so that the published commands run as they are: they say how another program works, or nothing here."""
_RANGE = {"left": "0", "right": "60000"}
_ARGUMENTS: dict[str, dict[str, str]] = {
    "sft": _TRAINING,
    "align": _TRAINING,
    "inference": {"input_file": NEEDED, "model_name_or_path": NEEDED, "output_dir": NEEDED, **_RANGE},
    "entropy": {"inference_file": NEEDED, "model_name_or_path": NEEDED, "output_dir": NEEDED, "epo": "1", **_RANGE},
    "formate": {"inference_file": NEEDED, "entropy_file": NEEDED, "output_dir": NEEDED, "epo": "1", "size": "60000"},
    "reward": {"inference_file": NEEDED, "output_dir": NEEDED, "epo": "1", "metric": "f1", **_RANGE},
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def read_arguments(procedure: str, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The step's arguments by name, and the words ``key=value`` that go on to a run.

    Raises UserError for another procedure, an argument that it does not know, and one that is missing.
    """
    if procedure not in PROCEDURES:
        raise UserError(f"PROCEDURE={procedure}: write one of {', '.join(PROCEDURES)}")
    overrides = [word for word in words if "=" in word and not word.startswith("--")]
    parser = _Parser(prog=f"PROCEDURE={procedure}", allow_abbrev=False, add_help=False)
    known = _ARGUMENTS[procedure]
    for name, default in known.items():
        parser.add_argument(f"--{name}", default=default, required=default == NEEDED)
    for name in IGNORED:
        parser.add_argument(f"--{name}")
    # A value may hold "=": only words that no argument takes are overrides.
    taken = {words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--") and "=" not in word}
    overrides = [word for word in overrides if word not in taken]
    given = vars(parser.parse_args([word for word in words if word not in overrides]))
    return {name: given[name] for name in known}, overrides


def number(arguments: dict[str, str], name: str) -> float:
    """A number among the arguments. Raises UserError if it is none."""
    try:
        return float(arguments[name])
    except ValueError as error:
        raise UserError(f"--{name} {arguments[name]}: write a number") from error


def whole(arguments: dict[str, str], name: str) -> int:
    """A whole number among the arguments. Raises UserError if it is none."""
    value = number(arguments, name)
    if not value.is_integer():
        raise UserError(f"--{name} {arguments[name]}: write a whole number")
    return int(value)


def training_keys(arguments: dict[str, str], rows: int, ranks: int) -> list[str]:
    """What ``sft`` and ``align`` say, in the keys of a run that is a warm-up alone, on ``ranks`` learner ranks."""
    if arguments["finetuning_type"] != "full":
        raise UserError(f"--finetuning_type {arguments['finetuning_type']}: write full, and learner.lora.rank=16, say")
    per_rank = whole(arguments, "per_device_train_batch_size") * whole(arguments, "gradient_accumulation_steps")
    batch, epochs = per_rank * ranks, whole(arguments, "num_train_epochs")
    steps = math.ceil(epochs * rows / batch)
    return [
        f"model={arguments['model_name_or_path']}",
        f"run_dir={arguments['output_dir']}",
        "trainer.steps=0",
        "warmup.steps=0",  # a recipe may have given its warm-up a length in steps
        f"warmup.epochs={epochs}",
        f"warmup.sequences_per_step={batch}",
        f"warmup.save_every_steps={whole(arguments, 'save_steps')}",
        f"warmup.optimizer.learning_rate={number(arguments, 'learning_rate')}",
        f"warmup.optimizer.schedule={arguments['lr_scheduler_type']}",
        f"warmup.optimizer.warmup_steps={math.ceil(number(arguments, 'warmup_ratio') * steps)}",
    ]
