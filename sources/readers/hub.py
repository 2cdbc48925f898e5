"""Datasets in hub layout, on a hub or in a local folder: opened, pinned and read.

The `datasets` library finds a dataset's files. The commit is resolved once and pinned, so that every rank and every
resume reads the same data. A shard is a data file, or a parquet row group where there are few files.

Parquet is read by `parquet.py`, through the hub's file system: the library would reopen a file for each row group, read
ahead each time, and fetch columns that are not needed. A cursor is then a row number, and resuming costs the file's
footer and one row group. Other formats are streamed by the library; a cursor is its own state before a batch of rows,
plus the number of rows of the batch that are done.
"""

import functools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict

from huggingface_hub import HfApi, hf_file_system

from sources.config import HubSpec
from sources.readers.base import Reader
from sources.readers.endpoint import explain
from sources.readers.fields import FieldError
from sources.readers.folder import files_fingerprint
from sources.readers.parquet import ParquetShard, columns_of, parquet_shards, read_columns
from sources.source import Backoff, SourceError

if TYPE_CHECKING:
    from datasets import IterableDataset

# By default the hub's client retries a read five times, over half a minute, with a warning each. One retry stays, for a
# connection that drops; further ones are the caller's, who announces them and ends them at data.retry_minutes.
hf_file_system.http_backoff = functools.partial(hf_file_system.http_backoff, max_retries=1)  # pyright: ignore[reportPrivateImportUsage]
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

ROWS_PER_BATCH = 64  # of what the library streams
OPENING_TRIES = 5
# Words of the library's message -> the sentence.
_SENTENCES = {
    "Available splits|Bad split": '{dataset} has no split "{split}"; its splits are {choices}.',
    "Config name is missing": '{dataset} needs a "config"; it has {choices}.',
    "BuilderConfig .*not found": '{dataset} has no config "{config}"; its configs are {choices}.',
    "scripts are no longer supported": "{dataset} is a loading script; use a copy that holds data files.",
    "(any|contain) data file|data files found": "{dataset} holds no data files, such as parquet or JSON lines.",
}
_CHOICES = re.compile(r"[Aa]vailable(?: splits| configs)?: \[(.*?)\]")


class CommitPin(TypedDict):
    """What reopens a repository on the hub."""

    commit: str | None


class FilesPin(TypedDict):
    """What reopens a local folder: its path, and the size of each file below it."""

    path: str
    files: dict[str, int]


class StreamCursor(TypedDict):
    """The library's state before a batch, and how many rows of the batch are done."""

    state: dict[str, Any]
    row: int


class HubSource(Reader):
    """A dataset in hub layout. Raises SourceError with the reason when it cannot be opened."""

    def __init__(self, spec: HubSpec, pin: CommitPin | FilesPin | None = None):
        super().__init__(spec.source_name)
        self._spec = spec
        self._shards: list[ParquetShard] = []
        self._dataset: IterableDataset | None = None  # where the library streams it, instead of the shards
        self._open_with_retries(self._pin_folder(spec.folder, pin) if spec.folder else pin)

    def pin(self) -> CommitPin | FilesPin:
        return self._pin

    def fingerprint(self) -> dict[str, object]:
        return {
            **self._spec.model_dump(include={"dataset", "config", "split"}),
            "version": self._version,
            "template": [self._template.parts, self._template.paths],
            "num_shards": self.num_shards,
        }

    def read(self, shard: int, cursor: int | StreamCursor | None) -> Iterator[tuple[str, int | StreamCursor]]:
        try:
            if self._dataset is None:
                assert cursor is None or isinstance(cursor, int)
                yield from self._read_parquet(self._shards[shard], cursor or 0)
            else:
                assert not isinstance(cursor, int)
                yield from self._stream(self._dataset.shard(num_shards=self.num_shards, index=shard), cursor)
        except Exception as error:
            raise _explain(error, self._spec) from error

    def _read_parquet(self, shard: ParquetShard, start: int) -> Iterator[tuple[str, int]]:
        with shard.open() as parquet:
            columns = columns_of(parquet.schema_arrow)
            if template := self.bind(self._spec.template(), columns, shard.path, usual=self._template):
                yield from self.texts(template, read_columns(parquet, template.columns, start, shard.group))
            else:
                self.skip(shard.path, "files without the text field")

    def _stream(self, dataset: "IterableDataset", cursor: StreamCursor | None) -> Iterator[tuple[str, StreamCursor]]:
        _import_datasets()  # for its settings, which are each process's own
        if cursor:
            dataset.load_state_dict(cursor["state"])
        state, done = (cursor["state"], cursor["row"]) if cursor else (dataset.state_dict(), 0)
        for batch in dataset.iter(batch_size=ROWS_PER_BATCH):
            columns = batch if isinstance(batch, dict) else batch.to_pydict()  # a table, in Arrow's format
            columns = {column: values[done:] for column, values in columns.items()}
            for text, row in self.texts(self._template, [(done, columns)]):
                yield text, {"state": state, "row": row}
            state, done = dataset.state_dict(), 0

    def _open_with_retries(self, pin: CommitPin | FilesPin | None) -> None:
        backoff = Backoff()
        for tries_left in reversed(range(OPENING_TRIES)):
            try:
                return self._open(pin)
            except Exception as error:  # the library raises anything from ValueError to RuntimeError to httpx errors
                failure = _explain(error, self._spec)
                if not (failure.transient and tries_left and backoff.sleep()):
                    raise failure from error
                self.notices.append(f"{failure.reason}; opening it again")

    def _open(self, pin: CommitPin | FilesPin | None) -> None:
        spec = self._spec
        pin = pin or CommitPin(commit=HfApi().dataset_info(spec.dataset, revision=spec.revision, timeout=10.0).sha)
        if "path" in pin:
            address, commit = pin["path"], None
        else:
            address, commit = spec.dataset, pin["commit"]
            self._version = commit
        self._pin = pin
        datasets = _import_datasets()
        builder = datasets.load_dataset_builder(address, spec.config, revision=commit)
        dataset = builder.as_streaming_dataset(split=spec.split)
        features = dataset.features  # None for a format whose rows may lack columns
        columns = dict.fromkeys(next(iter(dataset), {})) if features is None else columns_of(features.arrow_schema)
        self._template, substitutions = spec.template().bind(columns, spec.dataset)
        plain = features is not None and all(_is_plain(features[column]) for column in self._template.columns)
        if plain and (files := _parquet_files(builder, spec.split)):
            self._shards = parquet_shards(files)
        else:
            if features is not None:
                dataset = dataset.select_columns(self._template.columns)
            if plain and isinstance(builder, datasets.ArrowBasedBuilder):
                dataset = dataset.with_format("arrow")  # the library's own way to Python values is slow
            self._dataset = dataset
        self.num_shards = len(self._shards) or dataset.num_shards
        self.notices += substitutions

    def _pin_folder(self, folder: Path, pin: CommitPin | FilesPin | None) -> FilesPin:
        if not folder.is_dir():
            raise SourceError(f'the folder {folder} does not exist (looked in {Path.cwd()}); correct "dataset".')
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        self._version = files_fingerprint(files.items())
        sizes = {key: path.stat().st_size for key, path in files.items()}
        if pin is not None and "files" in pin and pin["files"] != sizes:
            self.announce_change(self._spec.dataset)
        return {"path": str(folder.resolve()), "files": sizes}


def _explain(error: Exception, spec: HubSpec) -> SourceError:
    """Return the SourceError for an error of the library, of the hub's client, or of our own."""
    if isinstance(error, SourceError):
        return SourceError(error.reason, transient=error.transient)
    if isinstance(error, FieldError):
        return SourceError(f'{error} Name one of them in "text_field" or "fields".')
    choices = _CHOICES.search(str(error))
    for words, sentence in _SENTENCES.items():
        if re.search(words, str(error)):
            values = {**spec.model_dump(), "choices": choices[1] if choices else "several"}
            return SourceError(sentence.format_map(values))
    return explain(error, spec.dataset)


def _import_datasets() -> ModuleType:
    import datasets  # takes seconds to import; parquet is read without it once it is open
    from datasets import config

    # By default the library retries a dead endpoint for half an hour. Retries beyond the hub client's are the caller's,
    # who announces them.
    for name in dir(config):
        if name.startswith("STREAMING_") and name.endswith(("_MAX_RETRIES", "_RETRY_INTERVAL")):
            setattr(config, name, 1 if name.endswith("_MAX_RETRIES") else 0)
    datasets.disable_progress_bars()
    return datasets


def _parquet_files(builder: Any, split: str) -> list[str]:
    """Return the addresses of a split's files where all are plain parquet and read unfiltered, else nothing."""
    if builder.name != "parquet" or builder.config.filters is not None:
        return []
    files = list((builder.config.data_files or {}).get(split, []))
    return files if all(file.endswith(".parquet") and "::" not in file for file in files) else []


def _is_plain(feature: Any) -> bool:
    """Return whether a column's Arrow values need no decoding, unlike those of pictures or packed JSON."""
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    inner = getattr(feature, "feature", None)  # of a list
    return _is_plain(inner) if inner is not None else type(feature).__name__ == "Value"
