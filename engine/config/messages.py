"""What is wrong with a preset, in sentences: a pydantic error -> the key, the problem, the remedy."""

import difflib
import json
import re
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def explain(error: ValidationError, values: dict[str, Any], schema: type[BaseModel]) -> str:
    """One or two sentences on why `schema` refuses `values`.

    A union reports one error for each alternative, so an unknown key, which is a cause by itself, comes first.
    """
    errors = error.errors()
    unknown = [details for details in errors if details["type"] == "extra_forbidden"]
    return " ".join(_sentence(details, values, schema) for details in (unknown or errors)[:2])


def _sentence(error: ErrorDetails, values: dict[str, Any], schema: type[BaseModel]) -> str:
    keys, known = _locate(error, values, schema)
    where = ".".join(map(str, keys))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(keys[-1]), known, 1, cutoff=0.5)
        return f"{where}: unknown, " + (f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}.")
    if error["type"] == "missing":
        return f"{where}: is missing."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if error["type"] == "value_error" and message.startswith(where):  # the validator named the key itself
        return message
    if error["type"] == "value_error" or message.endswith("."):
        return f"{where}: {message}"
    message = re.sub(r"a valid dictionary or instance of \w+", "an object with keys of its own", message)
    given = json.dumps(error["input"], default=str)
    return f"{where}: {message}, not {given if len(given) < 60 else type(error['input']).__name__}."


def _locate(error: ErrorDetails, values: Any, schema: type[BaseModel]) -> tuple[list[int | str], list[str]]:
    """The preset's own keys that lead to an error, and the keys known beside the last of them.

    pydantic also puts the tags of a union's alternatives into a location; those are no keys of the file.
    """
    keys: list[int | str] = []
    models = siblings = [schema]
    for depth, part in enumerate(error["loc"], 1):
        is_missing = error["type"] == "missing" and depth == len(error["loc"])
        try:
            values = values[part]
        except (LookupError, TypeError):
            if not is_missing:  # a tag: only the alternative that it names is meant
                models = [model for model in models if part in _tags(model)] or models
                continue
        keys.append(part)
        siblings = models
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [model for field in fields for model in _models(field.annotation)]
    return keys, [field.alias or key for model in siblings for key, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic model that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    """The names by which a union's error may mean `model`: its class's, and its "type"."""
    kind = model.model_fields.get("type")
    return (model.__name__, *(typing.get_args(kind.annotation) if kind else ()))
