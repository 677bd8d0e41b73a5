"""Training, validation and test files from published question sets: ``python -m preprocess.questions``."""

from preprocess.questions.build import build_files
from preprocess.questions.config import Config

__all__ = ["Config", "build_files"]
