"""One word for one thing: the words that were given up, with what is said instead, are in no name, comment or text."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.house import product_files
from tests.helpers.text import REPOSITORY

# In any text: product code with its comments, docstrings and messages, README.md, ARCHITECTURE.md and docs/.
TEXTS = {
    r"rehears\w*": "warm-up step",
    r"pass(?:ed|es|ing)[ _]over": "skipped or filtered documents",
    r"(?:an?|the|this|each|every|one|another|whole|first|last|next|same|its|mid|per|of|in|within|many|several|two|real"
    r"|best|larger)[ -]pass(?:es)?(?! of hands)": "epoch or micro-batch",
    r"how[ _-]many[ _-]th": "index",
    r"held-out (?:ce|rows?|loss(?:es)?|text)": "validation loss, validation set",
    r"(?:begin|begins|began|begun|beginning)[ _]anew": "starts over, a new lineage",
    r"surroundings": "callbacks",
    r"never_look\w*": "freeze_gc",
    r"speakers?": "rank 0, reporting rank",
    r"wish(?:es)?": "graceful stop",
    r"data waits?": "dataloader stall",
    r"speed by rows": "throughput",
}
# Of names of variables, functions and classes: whole ones, or between underscores.
NAMES = {"pass", "passes", "wish", "told", "speaker", "rehearse", "rehearsed", "rehearsal", "surroundings"}
CLASSES = {"Beginning", "Seen", "Made", "Found"}
# Names of formats: keys of files that older versions read and wrote, and a parameter of the standard library.
FORMATS = {"pass", "passed_over", "rows_per_pass", "rows_of_pass", "next_pass", "pass_fds"}

PATTERN = re.compile("|".join(rf"(?P<_{number}>\b{text}\b)" for number, text in enumerate(TEXTS)), re.IGNORECASE)
QUOTED = re.compile(rf"(?P<mark>[\"'`])(?:{'|'.join(FORMATS)})(?P=mark)")


def old_words(text: str) -> Iterator[str]:
    """The old words in a text, with their lines and what to say."""
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(?:forward|backward) pass(?:es)?", "", QUOTED.sub("", line))
        for found in PATTERN.finditer(line):
            said = list(TEXTS.values())[int(found.lastgroup.removeprefix("_"))]
            yield f"{number}: {found[0]!r}; say {said}"


def old_names(source: str) -> Iterator[str]:
    """The old words in the names of Python code."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string not in FORMATS:
            parts = set(token.string.strip("_").split("_"))
            if parts & NAMES or token.string.strip("_") in CLASSES:
                yield f"{token.start[0]}: the name {token.string}"


def pages() -> list[Path]:
    return [REPOSITORY / "README.md", REPOSITORY / "ARCHITECTURE.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]


SOURCES = product_files(REPOSITORY)
TEXT_OF = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in pages()} | SOURCES
FOUND = {path: [*old_words(text), *(old_names(text) if path in SOURCES else ())] for path, text in TEXT_OF.items()}


@pytest.mark.parametrize("path", TEXT_OF)
def test_old_words_are_gone(path: str):
    assert not FOUND[path], "\n".join(f"{path}:{one}" for one in FOUND[path])


@pytest.mark.parametrize(
    ("text", "old"),
    [
        ("one row of a pass", True),
        ("the passes of a step", True),
        ("the rehearsal's", True),
        ("documents passed over since the start", True),
        ("held-out CE", True),
        ("forward pass and backward pass", False),
        ('events with "pass" and `rows_per_pass`', False),
        ("text that passes the filters is passed on; whatever may pass", False),
        ("held out for evaluation", False),
    ],
)
def test_what_counts_as_an_old_word(text: str, old: bool):
    assert bool(list(old_words(text))) == old


@pytest.mark.parametrize(
    ("source", "old"),
    [
        ("for one in passes: pass", True),
        ("self._first_pass = 1", True),
        ("class Beginning: ...", True),
        ("Popen(pass_fds=()); password = passage", False),
        ('state["pass"], rows_per_pass', False),
    ],
)
def test_what_counts_as_an_old_name(source: str, old: bool):
    assert bool(list(old_names(source))) == old
