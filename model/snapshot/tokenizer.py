"""A tokenizer.json as anybody may have written it: read and checked, with what would change texts switched off.

What is refused would cost memory later: chained steps of a few bytes can make gigabytes of one character. Each step is
tried alone, on short texts, so that the check itself takes none.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

MOST_GROWTH = 64  # times that steps may lengthen a text; Unicode's own forms and their bytes reach 36
ADDED = 256  # characters that steps may add to any text beside that
MOST_STEPS = 256
PROBES = (
    *(character * 16 for character in "a 1.\n\u00e9\u4e2d\ufdfa\U0001f600"),
    *("".join(map(chr, range(start, start + 32))) for start in range(0x20, 0x180, 0x20)),
)
EMPTY: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}
# How one step of each part of a tokenizer.json changes the pieces of a text; a text passes the first two in turn.
ENCODING: dict[str, Callable[[Tokenizer, str], list[str]]] = {
    "normalizer": lambda step, piece: [step.normalizer.normalize_str(piece)],
    "pre_tokenizer": lambda step, piece: [cut for cut, _ in step.pre_tokenizer.pre_tokenize_str(piece)],
}
DECODING: dict[str, Callable[[Tokenizer, str], list[str]]] = {
    "decoder": lambda step, piece: [step.decoder.decode([piece])]
}
SEQUENCES = ("normalizers", "pretokenizers", "decoders")  # the keys under which a sequence has its steps


class TokenizerFailure(ValueError):
    """The tokenizers library fails on a text or on ids."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise TokenizerFailure for a panic of the tokenizers library, which is no Exception: no handler would see it."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its class cannot be imported
            raise
        raise TokenizerFailure(f"the tokenizer fails on this text ({str(error)[:80]!r}).") from None


def read_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json. Raises ValueError for one that cannot be read or used."""
    try:
        with panics_as_errors():
            tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing more specific
        raise ValueError("the tokenizer cannot be read; give the contents of a tokenizer.json.") from error
    if not tokenizer.get_vocab():
        raise ValueError("the tokenizer has no ids; use the one that the model was trained with.")
    if problem := tokenizer_problem(tokenizer_json):
        raise ValueError(f"the tokenizer {problem}; use the one that the model was trained with.")
    # A tokenizer.json may carry settings of the task it was made for; each of them would change texts silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_problem(tokenizer_json: str) -> str | None:
    """Return why a tokenizer.json that the library reads must not be used, as the rest of a sentence, or None."""
    described = json.loads(tokenizer_json)
    for what, parts in (("encoding", ENCODING), ("decoding", DECODING)):
        steps = [(part, step) for part in parts for step in _steps(described.get(part))]
        if len(steps) > MOST_STEPS:
            return f"has {len(steps):,} steps of {what}, where {MOST_STEPS} are allowed"
        if any(len(text) > MOST_GROWTH for _, step in steps for text in _written_by(step)):
            return f"writes more than {MOST_GROWTH} characters at once in {what}"
        texts = {text[:MOST_GROWTH] for _, step in steps for text in (*_written_by(step), *_looked_for_by(step))}
        try:
            with panics_as_errors():
                applied = [
                    partial(parts[part], Tokenizer.from_str(json.dumps(EMPTY | {part: step}))) for part, step in steps
                ]
                if any(_grows(text, applied) for text in (*PROBES, *sorted(texts))):
                    return f"makes texts more than {MOST_GROWTH} times as long in {what}"
        except Exception as error:  # the library raises nothing more specific
            return f"fails on a short text in {what} ({str(error)[:120]})"
    return None


def _steps(described: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part, those of sequences within sequences too."""
    if not isinstance(described, dict):
        return
    if described.get("type") != "Sequence":
        yield described
        return
    for inner in chain.from_iterable(described.get(key) or () for key in SEQUENCES):
        yield from _steps(inner)


def _written_by(step: dict[str, Any]) -> list[str]:
    """The texts that a step may write into others."""
    return [value for key in ("content", "prepend", "prefix") if isinstance(value := step.get(key), str)]


def _looked_for_by(step: dict[str, Any]) -> list[str]:
    """The texts that a step may look for; most regular expressions that match little match themselves."""
    pattern = step.get("pattern")
    return [text for text in pattern.values() if isinstance(text, str)] if isinstance(pattern, dict) else []


def _grows(text: str, steps: list[Callable[[str], list[str]]]) -> bool:
    """Whether the steps, one after the other, make a text too long; stops at the first that does."""
    pieces = [text]
    for step in steps:
        pieces = [longer for piece in pieces for longer in step(piece)]
        if sum(map(len, pieces)) > MOST_GROWTH * len(text) + ADDED:
            return True
    return False
