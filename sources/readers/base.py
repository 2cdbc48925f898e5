"""What all readers share: notices and counts of what they skip, and how rows become texts."""

from collections import Counter
from collections.abc import Iterable, Iterator

from sources.readers.fields import Columns, FieldError, Template
from sources.readers.parquet import Batch


class Reader:
    """The part of a Source that does not depend on where its documents are."""

    num_shards: int

    def __init__(self, name: str):
        self.name = name
        self.notices: list[str] = []
        self.counts: Counter[str] = Counter()
        self._noted: set[tuple[str, str]] = set()  # (file, what was announced or counted of it)

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

    def texts(self, template: Template, batches: Iterable[Batch]) -> Iterator[tuple[str, int]]:
        """Yield (text, number of the row after it) of all rows that have a text."""
        for first, columns in batches:
            for row_after, text in enumerate(template.render_columns(columns), start=first + 1):
                if text is None:
                    self.counts["rows without text"] += 1
                else:
                    yield text, row_after

    def _is_new(self, file: str, fact: str) -> bool:
        known = (file, fact) in self._noted
        self._noted.add((file, fact))
        return not known
