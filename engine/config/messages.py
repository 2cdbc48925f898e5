"""What is wrong with a preset, in sentences: a pydantic error -> the key, the problem, the remedy."""

import contextlib
import json
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from engine.config.schema import Preset
from sources.config import SPECS, TrainBPE
from sources.readers.fields import nearest

# Every object of a preset, by the last part of its location in pydantic's errors: a section's key, or a union's tag.
OBJECTS: dict[int | str, type[BaseModel]] = {
    **{key: type(field.default) for key, field in Preset.model_fields.items() if isinstance(field.default, BaseModel)},
    **SPECS,
    "train_bpe": TrainBPE,
}

LONGEST = 1000  # characters of a sentence
SHOWN = 20  # characters of a line that is not JSON
# What json.loads says -> what to do about it.
JSON_REMEDIES = {
    "Expecting ',' delimiter": "a comma is missing before it",
    "Expecting ':' delimiter": "a colon is missing before it",
    "Expecting property name": "a key in double quotes must stand there, and neither a comment nor a comma before }",
    "Illegal trailing comma": "a comma must not stand before } or ]",
    "Expecting value": "a value must stand there: a number, a text in double quotes, true, false, null, [...] or {...}",
    "Unterminated string": "the double quotes that begin there have no end",
    "Invalid control character": "a line ends within double quotes",
    "Invalid \\escape": "a backslash must be written twice",
    "Extra data": "the preset has ended before it; take it away, or a } too many",
}


def explain(error: ValidationError, values: dict[str, Any]) -> str:
    """Return one or two sentences on why `values` are no preset.

    A union reports one error for each alternative, so an unknown key, which is a cause by itself, comes first.
    """
    errors = error.errors(include_url=False, include_context=False)
    unknown = [details for details in errors if details["type"] == "extra_forbidden"]
    return " ".join(shortened(_sentence(details, values)) for details in (unknown or errors)[:2])


def explain_json(error: ValueError) -> str:
    """Return what is wrong with a text that json.loads refuses, and where."""
    if not isinstance(error, json.JSONDecodeError):  # not UTF-8, or a key that appears twice
        return str(error)
    line = [*error.doc.splitlines(), ""][error.lineno - 1][error.colno - 1 :].strip()
    at = f" ({line[:SHOWN]}{'...' if len(line) > SHOWN else ''})" if line else " (its end)"
    problem = next((remedy for said, remedy in JSON_REMEDIES.items() if error.msg.startswith(said)), error.msg)
    return f"line {error.lineno}, column {error.colno}{at}: {problem}"


def shortened(text: str) -> str:
    """`text`, or its beginning where it is too long to be read."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _sentence(error: ErrorDetails, values: dict[str, Any]) -> str:
    where = ".".join(_keys(error, values))
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        fields = (OBJECTS[parents[-1]] if parents else Preset).model_fields
        known = [field.alias or name for name, field in fields.items()]
        hint = nearest(str(key), known) or f"; known keys are {', '.join(known)}"
        return f"{where}: unknown key{hint}."
    if error["type"] == "missing":
        return f"{where}: is missing."
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and message.startswith(where):  # the validator named the key itself
        return message
    if error["type"] == "value_error" or message.endswith("."):
        return f"{where}: {message}"
    message = re.sub(r"a valid dictionary or instance of \w+", "an object with keys of its own", message)
    given = json.dumps(error["input"], default=str)
    return f"{where}: {message}, not {given if len(given) < 60 else type(error['input']).__name__}."


def _keys(error: ErrorDetails, values: Any) -> list[str]:
    """Return the preset's own keys that lead to an error: its location without the tags of a union's alternatives."""
    keys: list[str] = []
    for part in error["loc"]:
        with contextlib.suppress(LookupError, TypeError):  # a tag, or the key that is missing
            values = values[part]
            keys.append(str(part))
    return [*keys, str(error["loc"][-1])] if error["type"] == "missing" else keys
