"""Real text that every Python has: its help topics, one string each."""

from pydoc_data.topics import topics

import pytest


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return sorted(text for text in topics.values() if len(text.strip()) >= 50)
