"""Datasets in hub layout, on a hub or in a local folder, streamed by the `datasets` library.

The commit is resolved once and pinned, so that every rank and every resume reads the same data. A shard is a data file,
or a parquet row group where there are few files. Within a shard a cursor is the library's own state at the beginning of
a batch of rows plus the rows of it that are done: exact, and taken once per batch, not per row.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sources.config import HubSpec
from sources.endpoint import explain, newest_commit
from sources.fields import FieldError
from sources.source import JSON, SourceError

ROWS_PER_BATCH = 64
FEW_SHARDS = 8  # below this, parquet files are split by row group


class HubSource:
    """See the module's docstring. Raises SourceError with the reason when the dataset cannot be opened."""

    def __init__(self, spec: HubSpec, pin: dict[str, JSON] | None = None):
        self.name = spec.source_name
        self.notices: list[str] = []
        self.counts: Counter[str] = Counter()
        self._spec = spec
        self._pin = self._pin_folder(spec.folder, pin) if spec.folder else self._pin_commit(pin)
        try:
            self._dataset = self._open()
            columns = self._dataset.column_names or list(next(iter(self._dataset), {}))
            self._template, synonyms = spec.template().bind(columns, spec.dataset)
        except FieldError as error:
            raise SourceError(f"{error} Name one of them in text_field or fields.") from error
        except Exception as error:  # the library raises anything from ValueError to RuntimeError to httpx errors
            raise SourceError(self._explain(error)) from error
        self.notices += synonyms
        if self._dataset.column_names is not None:  # else a file format whose rows may lack columns
            self._dataset = self._dataset.select_columns(self._template.columns)
        if self._dataset.num_shards < FEW_SHARDS:
            self._dataset = self._dataset.reshard()
        self.num_shards = self._dataset.num_shards

    def pin(self) -> dict[str, JSON]:
        return self._pin

    def read(self, shard: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        try:
            yield from self._read(shard, cursor)
        except Exception as error:
            raise SourceError(self._explain(error)) from error

    def _read(self, shard: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        dataset = self._dataset.shard(num_shards=self.num_shards, index=shard)
        done = 0
        if cursor:
            dataset.load_state_dict(cursor["state"])
            done = cursor["row"]
        state = cursor["state"] if cursor else dataset.state_dict()
        for batch in dataset.iter(batch_size=ROWS_PER_BATCH):
            columns = list(batch)
            for number, values in enumerate(zip(*batch.values(), strict=True), start=1):
                if number <= done:
                    continue
                text = self._template.render(dict(zip(columns, values, strict=True)))
                if text is None:
                    self.counts["rows without text"] += 1
                else:
                    yield text, {"state": state, "row": number}
            state, done = dataset.state_dict(), 0

    def _open(self) -> Any:
        import datasets  # takes seconds to import; a run without hub sources never needs it

        # The library's defaults retry a dead endpoint for half an hour. Each read below still has the hub client's own
        # 5 tries (about 25 s, Retry-After obeyed); further tries are the lanes', where they are announced.
        datasets.config.STREAMING_READ_MAX_RETRIES = 1
        datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
        datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0
        datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0
        datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
        datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
        datasets.disable_progress_bars()
        return datasets.load_dataset(
            self._pin["path"] if self._spec.folder else self._spec.dataset,
            self._spec.config,
            split=self._spec.split,
            revision=self._pin.get("commit"),
            streaming=True,
        )

    def _pin_commit(self, pin: dict[str, JSON] | None) -> dict[str, JSON]:
        if pin is not None:
            return pin
        try:
            return {"commit": newest_commit(self._spec.dataset, self._spec.revision)}
        except Exception as error:
            raise SourceError(explain(error, self._spec.dataset)) from error

    def _pin_folder(self, folder: Path, pin: dict[str, JSON] | None) -> dict[str, JSON]:
        if not folder.is_dir():
            raise SourceError(
                f'the folder {self._spec.dataset} does not exist (looked in {Path.cwd()}); correct "dataset".'
            )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        now = {
            "path": str(folder.resolve()),
            "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
        }
        if pin is not None and pin["files"] != now["files"]:
            self.notices.append(
                f"the files in {self._spec.dataset} have changed since this run began; "
                "reading goes on from the same place as far as possible"
            )
        return now

    def _explain(self, error: Exception) -> str:
        """Turn the library's error into one sentence."""
        message, spec = str(error), self._spec
        named = re.search(r"Available: \[(.*?)\]|Available splits: \[(.*?)\]|available configs: \[(.*?)\]", message)
        choices = next((group for group in named.groups() if group is not None), "") if named else ""
        if "Available splits" in message or "Bad split" in message:
            return f'{spec.dataset} has no split "{spec.split}"; its splits are {choices}.'
        if "Config name is missing" in message:
            listed = re.search(r"\[(.*?)\]", message)
            return f'{spec.dataset} needs a "config"; it has {listed[1] if listed else "several"}.'
        if "BuilderConfig" in message and "not found" in message:
            return f'{spec.dataset} has no config "{spec.config}"; its configs are {choices}.'
        if "scripts are no longer supported" in message:
            return (
                f"{spec.dataset} is a loading script, which is no longer supported; use a copy that holds data files."
            )
        if spec.folder:
            return f"{spec.dataset} cannot be read: {message.splitlines()[0] if message else type(error).__name__}"
        if "data files" in message or "any data file" in message:
            return f"{spec.dataset} holds no data files that can be read (such as parquet or JSON lines)."
        return explain(error, spec.dataset)
