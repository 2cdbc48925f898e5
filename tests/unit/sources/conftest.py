"""Real text that every Python carries (its help topics), a small tokenizer trained on it, and folders made of both."""

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from sources.rows.tokenizer import TextTokenizer, train_bpe

TEXTS = sorted(text for text in topics.values() if len(text.strip()) >= 50)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return train_bpe(iter(TEXTS), 512)


@pytest.fixture(scope="session")
def write_json_lines():
    def write(folder: Path, texts: list[str], num_files: int, field: str = "text") -> Path:
        """Spread texts over files in turn."""
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(num_files):
            lines = [json.dumps({field: text, "number": n}) for n, text in enumerate(texts[number::num_files])]
            (folder / f"{number:02}.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write
