"""What all readers share: notices and counts of what they skip, and how rows become texts."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from typing import Literal, Self, TypeVar

from sources.readers.fields import Columns, FieldError, Template
from sources.readers.parquet import Batch
from sources.source import LONGEST_TEXT

Position = TypeVar("Position")
_SMALLER = "write the file again with smaller row groups"


class Reader:
    """The part of a Source that does not depend on where its documents are."""

    num_shards: int

    def __init__(self, name: str, join_rows: int | None = None):
        self.name = name
        self.join_rows = join_rows
        self.notices: list[str] = []
        self.counts: Counter[str] = Counter()
        self._noted: set[tuple[str, str]] = set()  # (file, what was announced or counted of it)

    def silent_copy(self) -> Self:
        """Return a reader of the same documents, whose notices and counts nobody sees."""
        reader = copy.copy(self)
        reader.notices, reader.counts, reader._noted = [], Counter(), set()
        return reader

    def announce(self, file: str, sentence: str) -> None:
        """Add a notice about a file, once."""
        if self._is_new(file, sentence):
            self.notices.append(f"{file}: {sentence}")

    def announce_change(self, location: str, detail: str = "") -> None:
        """Add the notice that a folder no longer holds the files that its pin names."""
        changed = f"the files in {location} have changed since this run began{detail}"
        self.notices.append(f"{changed}; reading continues from the same place as far as possible")

    def skip(self, file: str, reason: str, sentence: str | None = None) -> None:
        """Count a file that is skipped, once per reason; with a sentence, announce it too."""
        if self._is_new(file, reason):
            self.counts[reason] += 1
            if sentence:
                self.announce(file, sentence)

    def bind(self, template: Template, columns: Columns, file: str, usual: Template | None = None) -> Template | None:
        """Return the template for the columns of a file or row; None where one is missing, announced once a file.

        Announces columns that stand for others, unless the result is the `usual` one.
        """
        try:
            bound, substitutions = template.bind(columns, "this file")
        except FieldError as error:
            if self._is_new(file, "no such column"):
                self.announce(file, f"{error} Rows without it are skipped.")
            return None
        for sentence in substitutions if bound != usual else ():
            self.announce(file, sentence)
        return bound

    def skip_long(self, file: str, what: Literal["text", "line"]) -> None:
        """Count a text or line that is too long, and name its file."""
        self.counts[f"{what}s that are too long"] += 1
        self.announce(file, f"holds a {what} of more than {LONGEST_TEXT // 1024**2} MiB, which is skipped")

    def rows(self, template: Template, batches: Iterable[Batch], file: str) -> Iterator[tuple[str | None, int]]:
        """Yield (text, number of the row after it) of all rows of `file`; None where a row has no text of use."""
        for first, num_rows, columns in batches:
            if columns is None:
                texts: Iterable[str | None] = repeat(None, num_rows)
                if num_rows == 1:
                    self.skip_long(file, "text")
                else:
                    self.counts["texts that are too long"] += num_rows
                    self.announce(file, f"{num_rows:,} of its rows take too much memory and are skipped; {_SMALLER}")
            else:
                texts = template.render_columns(columns)
                if missing := texts.count(None):
                    self.counts["rows without text"] += missing
            for row_after, text in enumerate(texts, start=first + 1):
                if text is not None and len(text) > LONGEST_TEXT:
                    self.skip_long(file, "text")
                    text = None
                yield text, row_after

    def joined(self, rows: Iterable[tuple[str | None, Position]], file: str) -> Iterator[tuple[str, Position]]:
        """Yield (text, position after it) of each row that has a text, or of `join_rows` rows together.

        A row without a text counts as one of them. A position lies between such documents, so that reading on from it
        joins the same rows again; what is left at the end is a document, too.
        """
        if self.join_rows is None:
            yield from ((text, position) for text, position in rows if text is not None)
            return
        rows = iter(rows)
        for row in rows:
            texts, length, end = [], 0, row[1]
            for text, end in chain([row], islice(rows, self.join_rows - 1)):  # noqa: B007 # the last one's
                length += len(text or "")
                if text is not None and length <= LONGEST_TEXT:
                    texts.append(text)
            if length > LONGEST_TEXT:
                self.skip_long(file, "text")
            elif texts:
                yield "\n".join(texts), end

    def _is_new(self, file: str, fact: str) -> bool:
        known = (file, fact) in self._noted
        self._noted.add((file, fact))
        return not known
