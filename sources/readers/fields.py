"""Templates such as "Q: {question}\\nA: {answer}": parsed once, checked, filled in by replacement, never evaluated.

A preset may come from anybody, so a template is data: a placeholder is only ever looked up in a row. str.format would
walk attributes and honour widths of gigabytes; only its parser is used. A field may be a dotted path into nested
columns ("answers.text"); a list gives its first text.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import TypeAlias

# Columns that published datasets use for the same thing; used only when the asked one is absent, and announced.
SYNONYMS = {"question": "query", "query": "question"}

# The columns of a dataset by name: their nested fields (of a list: those of its items), or None where plain or unknown.
Columns: TypeAlias = Mapping[str, "Columns | None"]
Path: TypeAlias = tuple[str, ...]  # a column, and what to look up in it


class FieldError(ValueError):
    """A template or a field list cannot be used; the message says which part, and what to write instead."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean "x"?)' for the known word closest to `word`, or '' when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""


@dataclass(frozen=True)
class Template:
    """Literal texts, each with the placeholder after it; `paths` says where each placeholder is read from."""

    parts: tuple[tuple[str, str | None], ...]
    paths: Mapping[str, Path]

    @property
    def columns(self) -> list[str]:
        """The top-level columns this template reads, in order, each once."""
        return list(dict.fromkeys(path[0] for path in self.paths.values()))

    def bind(self, columns: Columns, where: str) -> tuple["Template", list[str]]:
        """Match the paths with the columns there are, nested ones included.

        Returns the bound template and what to announce. Raises FieldError naming the columns of `where`.
        """
        bound: dict[str, Path] = {}
        notices: list[str] = []
        for field, path in self.paths.items():
            column, *rest = path
            other = SYNONYMS.get(column, column)
            if ".".join(path) in columns:  # a flat column may have a dot in its name
                path = (".".join(path),)
            elif column not in columns and other in columns:
                path = (other, *rest)
                notices.append(f"field {column} is read from the column {other}, since there is no column {column}")
            _check_path(path, columns, where)
            bound[field] = path
        return replace(self, paths=bound), notices

    def render(self, row: Mapping[str, object]) -> str | None:
        """Return the row's text, or None when a field is missing, null or empty."""
        return self.render_columns({column: [row.get(column)] for column in self.columns})[0]

    def render_columns(self, columns: Mapping[str, Sequence[object]]) -> list[str | None]:
        """Return each row's text as `render` does, of rows given as equally long columns."""
        num_rows = len(next(iter(columns.values())))
        texts = [
            [_first_text(value, path[1:]) for value in columns.get(path[0]) or [None] * num_rows]
            for path in self.paths.values()
        ]
        if len(texts) == len(self.parts) == 1 and not self.parts[0][0]:  # the usual template, a column by itself
            return texts[0]
        order = list(self.paths)
        parts = [(literal, order.index(field) if field else None) for literal, field in self.parts]
        return [
            None if None in row else "".join(literal if n is None else literal + row[n] for literal, n in parts)
            for row in zip(*texts, strict=True)
        ]


def compile_template(format: str | None, fields: Sequence[str] | Mapping[str, str] | None) -> Template:
    """Build a template from a preset's `format` and `fields`.

    Without `format` the fields are joined by newlines; without `fields` they are taken from the format; a mapping gives
    the column (or dotted path) of each placeholder. Raises FieldError.
    """
    paths = dict(fields) if isinstance(fields, Mapping) else {field: field for field in fields or ()}
    if format is None:
        if not paths:
            raise FieldError('"fields" is empty; name at least one column.')
        parts = [("\n" if position else "", field) for position, field in enumerate(paths)]
    else:
        parts = _parse(format, paths)
        if fields is None:
            paths = {field: field for _, field in parts if field is not None}
    for path in paths.values():
        if not all(path.split(".")):
            raise FieldError(f'"fields" holds {path!r}; a field is a column\'s name or a path such as "answers.text".')
    return Template(tuple(parts), {field: tuple(path.split(".")) for field, path in paths.items()})


def _parse(format: str, known: Mapping[str, str]) -> list[tuple[str, str | None]]:
    try:
        parts = list(Formatter().parse(format))
    except ValueError as error:
        raise FieldError(f'"format" cannot be read: {error}; write a literal brace as {{{{ or }}}}.') from None
    for _, field, spec, conversion in parts:
        if field is None or (field in known and not (spec or conversion)):
            continue
        if spec or conversion or not field or field.isdigit() or set(field) & set(".[]"):
            remedy = 'write a bare name and put the column into "fields", such as {"answer": "answers.text"}'
            raise FieldError(f'"format" holds {{{field}}}, which is no bare name such as {{question}}; {remedy}.')
        if known:
            names = f"{nearest(field, known)}: {', '.join(known)}"
            raise FieldError(f'"format" uses {{{field}}}, which is not among "fields"{names}.')
    if not any(field for _, field, _, _ in parts):
        raise FieldError('"format" has no placeholder; name a column in braces, such as {text}.')
    return [(literal, field) for literal, field, _, _ in parts]


def _check_path(path: Path, columns: Columns, where: str) -> None:
    """Raise FieldError when `where`, or a column in it, is known to lack the next part of the path."""
    place, kind = where, "column"
    known: Columns | None = columns
    for name in path:
        if known is None:
            return
        if name not in known:
            names = f"{nearest(name, known)}; its {kind}s are {', '.join(known)}"
            raise FieldError(f"{place} has no {kind} {name!r}{names}.")
        place, kind, known = f"the column {name!r} of {where}", "field", known[name]


def _first_text(value: object, path: Path) -> str | None:
    """Return the first text below `path`. Not by recursion: a row may be nested deeper than Python can call."""
    waiting = [(value, path)]
    while waiting:
        value, path = waiting.pop()
        match value:
            case str() if not path and value.strip():
                return value
            case list() | tuple():
                waiting += [(item, path) for item in reversed(value)]
            case Mapping() if path:
                waiting.append((value.get(path[0]), path[1:]))
            case int() | float() if not path and not isinstance(value, bool):
                return str(value)
    return None
