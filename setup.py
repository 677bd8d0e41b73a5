"""Packaging. ``bash cmd/setup.sh`` installs exact versions from a lock file; the ranges here serve use as a library."""

from pathlib import Path

from setuptools import find_packages, setup


def requirements(name: str) -> list[str]:
    """The lines of ``requirements/<name>.in`` that name a package."""
    lines = (Path(__file__).parent / "requirements" / f"{name}.in").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


setup(
    name="sleuth",
    version="0.1.0",
    description="Reinforcement learning for language models that search",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["verl*", "search_agent*", "preprocess*"]),
    package_data={"search_agent.viewer": ["page/*"], "search_agent.retrieval.server": ["page.html"]},
    install_requires=[*requirements("base"), "torch>=2.11,<2.14", "transformers>=5.16,<5.20"],
    extras_require={
        "rollout": ["vllm==0.32.0"],
        "dense": ["faiss-cpu"],
        "qdrant": ["qdrant-client"],
        "lucene": ["pyserini"],
        "tracking": ["wandb", "tensorboard"],
        "multimodal": ["pillow", "torchvision==0.28.0"],
        "dev": requirements("dev"),
    },
)
