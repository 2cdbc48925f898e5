"""Real text that every Python has, as folders of files."""

import pydoc_data.topics
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def write_topics(folder: Path, every: int = 1) -> Path:
    """Python's documentation topics, about 460 kB or every so-many-th of them, in files of some 1,000 characters."""
    for name in sorted(pydoc_data.topics.topics)[::every]:
        for number, piece in enumerate(pieces(pydoc_data.topics.topics[name])):
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
