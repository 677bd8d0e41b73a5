"""``python -m preprocess.rare.special model=FOLDER out=FOLDER``: a model with the four tokens of RARE's preliminary
experiment: ``[RETRIEVAL] [ENTITIES] [SEP] [REASONING]``, at the end of its vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl.config.arguments import parse, run
from verl.durable import new_folder
from verl.errors import UserError
from verl.seeds import derive_seed

REASONING = "[REASONING]"
TOKENS = ("[RETRIEVAL]", "[ENTITIES]", "[SEP]", REASONING)


@dataclass(frozen=True)
class Config:
    """Keys of ``python -m preprocess.rare.special``."""

    model: str
    """A folder or a hub name; Llama-3.1-8B-Instruct as published."""
    out: str
    """Folder to write; there must be none yet."""
    seed: int = 0
    """Draws the new rows of the embeddings, around the mean of the old ones."""


def add_tokens(config: Config) -> dict[str, int]:
    """Write the model; returns the ids of the four. Raises UserError if the model cannot be loaded."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        model = AutoModelForCausalLM.from_pretrained(config.model, dtype="auto")
    except (OSError, ValueError) as error:
        raise UserError(f"model={config.model}: cannot be loaded ({str(error).splitlines()[0]})") from error
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "special") % 2**63)
        # A vocabulary that is padded to a round number, as Qwen's, has room for them already.
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    with new_folder(Path(config.out), "out") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {token: int(tokenizer.convert_tokens_to_ids(token)) for token in TOKENS}


def main(arguments: Sequence[str]) -> int:
    """Build by ``key=value`` arguments; returns the exit status."""
    config = parse(Config, arguments)
    print(", ".join(f"{token} = {number}" for token, number in add_tokens(config).items()))
    print(f"written to {config.out}")
    return 0


if __name__ == "__main__":
    run(main)
