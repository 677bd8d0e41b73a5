"""The embedded world: an invented corpus, its questions and a small model, built from a seed."""

from preprocess.embedded.build import Config, WorldPaths, build_world

__all__ = ["Config", "WorldPaths", "build_world"]
