"""Datasets in hub layout, on a hub or in a local folder, as the `datasets` library finds and streams them.

The commit is resolved once and pinned, so that every rank and every resume reads the same data. A shard is a data file,
or a parquet row group where there are few files. Parquet is read here, through the hub's file system: the library would
open a file anew for each row group, read ahead each time, and fetch columns that nobody asked for. A cursor is then a
row number, and going on costs the file's footer and one row group. Other formats are streamed by the library, and a
cursor is its own state before a batch of rows plus the rows of it that are done.
"""

import functools
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import hf_file_system

from sources.config import HubSpec
from sources.readers.endpoint import explain, is_transient, newest_commit
from sources.readers.fields import FieldError, Template
from sources.readers.folder import digest
from sources.readers.parquet import columns_of, read_columns
from sources.source import FIRST_WAIT, JSON, TRYING_SECONDS, SourceError

# By itself the hub's client tries a read five times more, over half a minute, and warns of each. One more is for a
# connection that drops; the rest are the reader's, who announces them and ends them at data.retry_minutes.
hf_file_system.http_backoff = functools.partial(hf_file_system.http_backoff, max_retries=1)
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

ROWS_PER_BATCH = 64  # of what the library streams
FEW_FILES = 16  # below this, parquet files are split by row group
OPENING_TRIES = 5


@dataclass(frozen=True)
class ParquetShard:
    """A parquet file, or one row group of it together with the file's footer."""

    path: str
    group: int | None = None
    footer: pq.FileMetaData | None = None


class HubSource:
    """See the module's docstring. Raises SourceError with the reason when the dataset cannot be opened."""

    def __init__(self, spec: HubSpec, pin: dict[str, JSON] | None = None):
        self.name = spec.source_name
        self.notices: list[str] = []
        self.counts: Counter[str] = Counter()
        self._announced: set[str] = set()  # files with other columns
        self._spec = spec
        self._pin = self._pin_folder(spec.folder, pin) if spec.folder else pin
        self._parquet: list[ParquetShard] = []  # empty where the library streams the dataset
        self._dataset: Any = None
        self._files: fsspec.AbstractFileSystem | None = None
        self._insist(self._open)
        self.num_shards = len(self._parquet) or self._dataset.num_shards

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._dataset is not None:
            _import_datasets()  # for its settings, which are this process's own

    def pin(self) -> dict[str, JSON]:
        return self._pin

    def fingerprint(self) -> JSON:
        return {
            "dataset": self._spec.dataset,
            "config": self._spec.config,
            "split": self._spec.split,
            "version": self._files_digest if self._spec.folder else self._pin["commit"],
            "template": [list(map(list, self._template.parts)), {k: list(v) for k, v in self._template.paths.items()}],
            "num_shards": self.num_shards,
        }

    def read(self, shard: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        try:
            yield from self._read_parquet(shard, cursor) if self._parquet else self._read_stream(shard, cursor)
        except Exception as error:
            raise SourceError(self._explain(error), transient=is_transient(error)) from error

    def _read_parquet(self, number: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        shard = self._parquet[number]
        with self._open_parquet(shard) as parquet:
            template = self._bind(shard, parquet)
            if template is None:
                return
            for first, values in read_columns(parquet, template.columns, cursor or 0, shard.group):
                for row, text in enumerate(template.render_columns(values), start=first + 1):
                    if text is None:
                        self.counts["rows without text"] += 1
                    else:
                        yield text, row

    def _bind(self, shard: ParquetShard, parquet: pq.ParquetFile) -> Template | None:
        """Return the template for a file, whose columns may be others than the first file's; None where it lacks one.

        What differs is announced once per file.
        """
        try:
            template, notices = self._spec.template().bind(columns_of(parquet.schema_arrow), "this file")
        except FieldError as error:
            template, notices = None, [f"{error} The file is skipped."]
        if template != self._template and shard.path not in self._announced:
            self._announced.add(shard.path)
            self.notices += [f"{shard.path}: {notice}" for notice in notices]
            if template is None:
                self.counts["files without the text field"] += 1
        return template

    def _read_stream(self, shard: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        dataset = self._dataset.shard(num_shards=self.num_shards, index=shard)
        done = 0
        if cursor:
            dataset.load_state_dict(cursor["state"])
            done = cursor["row"]
        state = cursor["state"] if cursor else dataset.state_dict()
        for batch in dataset.iter(batch_size=ROWS_PER_BATCH):
            columns = batch.to_pydict() if isinstance(batch, pa.Table) else batch
            for row, text in enumerate(self._template.render_columns(columns), start=1):
                if row <= done:
                    continue
                if text is None:
                    self.counts["rows without text"] += 1
                else:
                    yield text, {"state": state, "row": row}
            state, done = dataset.state_dict(), 0

    def _insist(self, attempt: Callable[[], None]) -> None:
        """Try again, with growing random waits, while failures may pass; raises SourceError."""
        begin, wait = time.monotonic(), FIRST_WAIT
        for tries_left in reversed(range(OPENING_TRIES)):
            try:
                return attempt()
            except FieldError as error:
                raise SourceError(f"{error} Name one of them in text_field or fields.") from error
            except Exception as error:  # the library raises anything from ValueError to RuntimeError to httpx errors
                reason, transient = self._explain(error), is_transient(error)
                pause = wait * random.uniform(0.5, 1.5)  # ranks must not come back all at once
                if not (transient and tries_left) or time.monotonic() + pause - begin > TRYING_SECONDS:
                    raise SourceError(reason, transient=transient) from error
            self.notices.append(f"{reason}; opening it again")
            time.sleep(pause)
            wait *= 2

    def _open(self) -> None:
        spec = self._spec
        if self._pin is None:
            self._pin = {"commit": newest_commit(spec.dataset, spec.revision)}
        datasets = _import_datasets()
        builder = datasets.load_dataset_builder(
            self._pin["path"] if spec.folder else spec.dataset, spec.config, revision=self._pin.get("commit")
        )
        dataset = builder.as_streaming_dataset(split=spec.split)
        features = dataset.features  # None for a format whose rows may lack columns
        columns = dict.fromkeys(next(iter(dataset), {})) if features is None else columns_of(features.arrow_schema)
        self._template, synonyms = spec.template().bind(columns, spec.dataset)
        plain = features is not None and all(_is_plain(features[column]) for column in self._template.columns)
        if plain and (files := _parquet_files(builder, spec.split)):
            self._files, _ = fsspec.core.url_to_fs(files[0])
            self._parquet = self._parquet_shards(files)
        else:
            self._dataset = dataset if features is None else dataset.select_columns(self._template.columns)
            if plain and isinstance(builder, datasets.ArrowBasedBuilder):
                self._dataset = self._dataset.with_format("arrow")  # the library's own way to Python values is slow
        self.notices += synonyms

    def _parquet_shards(self, files: list[str]) -> list[ParquetShard]:
        shards = [ParquetShard(fsspec.core.url_to_fs(file)[1]) for file in files]
        if len(files) >= FEW_FILES:
            return shards
        footers = []
        for shard in shards:
            with self._open_parquet(shard) as parquet:
                footers.append(parquet.metadata)
        groups = [
            ParquetShard(shard.path, group, footer)
            for shard, footer in zip(shards, footers, strict=True)
            for group in range(footer.num_row_groups)
        ]
        return groups or shards

    @contextmanager
    def _open_parquet(self, shard: ParquetShard) -> Iterator[pq.ParquetFile]:
        """Open a shard's file, reading ahead where all of it is read; raises SourceError naming a damaged file."""
        try:
            with (
                self._files.open(shard.path, cache_type="readahead" if shard.group is None else "none") as stream,
                pq.ParquetFile(stream, metadata=shard.footer) as parquet,
            ):
                yield parquet
        except pa.ArrowInvalid as error:
            raise SourceError(f"{shard.path} is damaged ({str(error).splitlines()[0]})") from error

    def _pin_folder(self, folder: Path, pin: dict[str, JSON] | None) -> dict[str, JSON]:
        if not folder.is_dir():
            raise SourceError(
                f'the folder {self._spec.dataset} does not exist (looked in {Path.cwd()}); correct "dataset".'
            )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self._files_digest = digest((path.relative_to(folder).as_posix(), path) for path in files)
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
        if isinstance(error, SourceError):
            return error.reason
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


def _import_datasets() -> Any:
    import datasets  # takes seconds to import; parquet is read without it once it is open

    # The library's defaults retry a dead endpoint for half an hour. Further tries than the hub client's are the
    # reader's, where they are announced.
    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
    datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0
    datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0
    datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    datasets.disable_progress_bars()
    return datasets


def _parquet_files(builder: Any, split: str) -> list[str]:
    """Return the addresses of a split's files when they are bare parquet and nothing else is asked of them."""
    if builder.name != "parquet" or builder.config.filters is not None:
        return []
    files = list((builder.config.data_files or {}).get(split, []))
    return files if all(file.endswith(".parquet") and "::" not in file for file in files) else []


def _is_plain(feature: Any) -> bool:
    """Tell whether a column's Arrow values are the values meant, unlike those of pictures or packed JSON."""
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    inner = getattr(feature, "feature", None)  # of a list
    return _is_plain(inner) if inner is not None else type(feature).__name__ == "Value"
