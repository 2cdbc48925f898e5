"""Real text that every Python has, as folders of files, and small presets over it."""

import os
import pydoc_data.topics
from pathlib import Path

import pytest

# Tests share two cores with each other; spinning OpenMP threads would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def topics_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's documentation topics, about 700 kB, in files of some 1,000 characters."""
    return write_topics(tmp_path_factory.mktemp("topics"))


def write_topics(folder: Path) -> Path:
    for name, text in pydoc_data.topics.topics.items():
        for number, piece in enumerate(pieces(text)):
            (folder / f"{name}-{number:03}.txt").write_text(piece, encoding="utf-8")
    return folder


def pieces(text: str, length: int = 1000) -> list[str]:
    """`text` cut at paragraph ends into parts of about `length` characters."""
    parts = [""]
    for paragraph in text.split("\n\n"):
        if len(parts[-1]) >= length:
            parts.append("")
        parts[-1] += paragraph + "\n\n"
    return parts
