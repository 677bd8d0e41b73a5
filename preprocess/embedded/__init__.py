"""The embedded world: an invented corpus, its questions and a small model, built from a seed."""

from preprocess.embedded.build import Config, build_world

__all__ = ["Config", "build_world"]
