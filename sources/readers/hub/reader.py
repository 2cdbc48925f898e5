"""Datasets in hub layout, on a hub or in a local folder: opened, pinned and read.

The `datasets` library finds a dataset's files. The commit is resolved once and pinned, so that every rank and every
resume reads the same data. A shard is a data file, or a parquet row group where there are few files.

Parquet is read by `parquet.py`, through the hub's file system: the library would reopen a file for each row group, read
ahead each time, and fetch columns that are not needed. A cursor is then a row number, and resuming costs the file's
footer and one row group. Other formats are streamed by the library; a cursor is its own state before a batch of rows,
plus the number of rows of the batch that are done.

A file that cannot be decoded, and cannot either when it is fetched once more, is damaged: it is named, and skipped from
there on. So what is skipped follows from the data, and all lanes, ranks and resumes skip the same. What a server
answers is never damage, and a refusal in the middle of a run does not count before a minute of asking again.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from huggingface_hub import HfApi, HfFileSystem

from sources.config import HubSpec
from sources.readers.base import Reader
from sources.readers.damage import is_damage
from sources.readers.fields import FieldError
from sources.readers.folder import files_fingerprint
from sources.readers.hub.endpoint import (
    ask,
    cached_folder,
    causes,
    explain,
    is_gated,
    is_offline,
    is_refusal,
    not_downloaded,
    refusal,
)
from sources.readers.hub.library import columns_of_first_row, import_datasets, is_plain, is_plain_parquet, streamed
from sources.readers.hub.streaming import bounded_lines
from sources.readers.parquet import Batch, ParquetShard, columns_of, parquet_shards, read_columns, to_python
from sources.source import SourceError, SourceGone, first_line
from storage import refuse_special

if TYPE_CHECKING:
    from datasets import IterableDataset

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

ROWS_PER_BATCH = 64  # of what the library streams
TIMEOUT = 10.0  # seconds, of a question about a repository
REFUSED_SECONDS = 60.0  # how long a refusal may last that the network for file contents may have made up
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
        super().__init__(spec.source_name, spec.join_rows)
        self._spec = spec
        self._shards: list[ParquetShard] = []
        self._dataset: IterableDataset | None = None  # where the library streams it, instead of the shards
        self._files: list[str] = []  # of the streamed dataset, where each is a shard
        self._folder: Path | None = None  # that is read, instead of the hub
        self._pin: CommitPin | FilesPin | None = None
        self.num_bytes: int | None = None  # of the split's values, as the dataset describes itself
        try:
            self._open(*self._locate(pin))
        except SourceGone:
            raise
        except Exception as error:  # the library raises anything from ValueError to RuntimeError to httpx errors
            raise self._failure(error, is_open=False) from error

    def pin(self) -> CommitPin | FilesPin:
        assert self._pin is not None
        return self._pin

    def fingerprint(self) -> dict[str, object]:
        return {
            **self._spec.model_dump(include={"dataset", "config", "split"}),
            "version": self._version,
            "template": [self._template.parts, self._template.paths],
            "num_shards": self.num_shards,
            **({"join_rows": self.join_rows} if self.join_rows else {}),
        }

    def read(self, shard: int, cursor: int | StreamCursor | None) -> Iterator[tuple[str, int | StreamCursor]]:
        damaged_at: list[int | StreamCursor | None] = []
        while True:
            try:
                for text, after in self._documents(shard, cursor):
                    cursor = after
                    yield text, after
                return
            except Exception as error:
                failure = self._failure(error)
                if self._folder is not None and _cannot_be_opened(error) and self._folder.is_dir():
                    self.skip(self._file_of(shard), "files that cannot be opened", f"is skipped: {failure.reason}")
                    return
                if failure.transient or not is_damage(error):
                    raise failure from error
                if cursor in damaged_at:
                    sentence = f"is damaged ({first_line(error)}); what follows is skipped"
                    self.skip(self._file_of(shard), "damaged files", sentence)
                    return
                damaged_at = [cursor]

    def _documents(self, shard: int, cursor: int | StreamCursor | None) -> Iterator[tuple[str, int | StreamCursor]]:
        if self._dataset is None:
            assert cursor is None or isinstance(cursor, int)
            return self._read_parquet(self._shards[shard], cursor or 0)
        assert not isinstance(cursor, int)
        return self._stream(self._dataset.shard(num_shards=self.num_shards, index=shard), cursor)

    def _read_parquet(self, shard: ParquetShard, start: int) -> Iterator[tuple[str, int]]:
        with shard.open() as parquet:
            columns = columns_of(parquet.schema_arrow)
            if template := self.bind(self._spec.template(), columns, shard.path, usual=self._template):
                batches = read_columns(parquet, template.columns, start, shard.group)
                yield from self.joined(self.rows(template, batches, shard.path), shard.path)
            else:
                self.skip(shard.path, "files without the text field")

    def _stream(self, dataset: "IterableDataset", cursor: StreamCursor | None) -> Iterator[tuple[str, StreamCursor]]:
        import_datasets()  # for its settings, which are each process's own
        if cursor:
            dataset.load_state_dict(cursor["state"])
        state, done = (cursor["state"], cursor["row"]) if cursor else (dataset.state_dict(), 0)
        together = self.join_rows or 1
        batches_of_rows = iter(dataset.iter(batch_size=together * -(-ROWS_PER_BATCH // together)))
        while True:
            with bounded_lines(self):
                batch = next(batches_of_rows, None)
            if batch is None:
                return
            if isinstance(batch, dict):
                columns = {column: values[done:] for column, values in batch.items()}
                batches = iter([Batch(done, len(next(iter(columns.values()))), columns)])
            else:  # a table, in Arrow's format
                batches = to_python(batch.slice(done), done)
            for text, row in self.joined(self.rows(self._template, batches, self.name), self.name):
                yield text, {"state": state, "row": row}
            state, done = dataset.state_dict(), 0

    def _file_of(self, shard: int) -> str:
        """Return what to call a shard when something is wrong with it."""
        if self._dataset is not None:
            return self._files[shard] if self._files else f"shard {shard + 1} of {self._spec.dataset}"
        path, group = self._shards[shard].path, self._shards[shard].group
        return path if group is None else f"{path}, row group {group + 1}"

    def _locate(self, pin: CommitPin | FilesPin | None) -> tuple[str, str | None]:
        """Pin the data; return where `datasets` finds it, and the commit where that is the hub."""
        spec = self._spec
        folder = spec.folder
        if folder is None and pin is not None and "path" in pin:  # a folder that is gone looks like a hub's name
            folder = Path(pin["path"])
        if folder is not None:
            self._folder = folder
            self._pin = found = self._pin_folder(folder, pin)
            return found["path"], None
        commit = pin["commit"] if pin is not None and "commit" in pin else None
        if is_offline():
            self._folder = cached_folder(spec.dataset, commit or spec.revision)
            self._version = self._folder.name
            self._pin = CommitPin(commit=self._version)
            self.notices.append(f"HF_HUB_OFFLINE is set, so it is read from the cache, {self._folder}")
            return str(self._folder), None
        commit = commit or HfApi().dataset_info(spec.dataset, revision=spec.known_revision, timeout=TIMEOUT).sha
        self._version, self._pin = commit, CommitPin(commit=commit)
        return spec.dataset, commit

    def _open(self, address: str, commit: str | None) -> None:
        spec = self._spec
        datasets = import_datasets()
        builder = datasets.load_dataset_builder(address, spec.config, revision=commit)
        with bounded_lines(self, builder):
            dataset = streamed(builder, spec.split)
            features = dataset.features  # None for a format whose rows may lack columns
            columns = columns_of_first_row(dataset) if features is None else columns_of(features.arrow_schema)
        if not columns:
            raise _no_rows(spec)
        self._template, substitutions = spec.template().bind(columns, spec.dataset)
        plain = features is not None and all(is_plain(features[column]) for column in self._template.columns)
        files = list((builder.config.data_files or {}).get(spec.split, []))
        if plain and is_plain_parquet(builder, files):
            self._shards = parquet_shards(files)
            if not any(shard.num_rows != 0 for shard in self._shards):
                raise _no_rows(spec)
        else:
            if features is not None:
                dataset = dataset.select_columns(self._template.columns)
            if plain and isinstance(builder, datasets.ArrowBasedBuilder):
                dataset = dataset.with_format("arrow")  # the library's own way to Python values is slow
            self._dataset = dataset
            self._files = files if len(files) == dataset.num_shards else []
        self.num_shards = len(self._shards) or dataset.num_shards
        described = (builder.info.splits or {}).get(spec.split)
        self.num_bytes = getattr(described, "num_bytes", None) or None
        self.notices += substitutions

    def _pin_folder(self, folder: Path, pin: CommitPin | FilesPin | None) -> FilesPin:
        if not folder.is_dir():
            raise SourceGone(f'the folder {folder} does not exist (looked in {Path.cwd()}); correct "dataset".')
        found = sorted(folder.rglob("*"))
        refuse_special(found)  # the library may open any of them
        paths = [path for path in found if path.is_file()]
        if not paths:
            raise SourceGone(f'the folder {folder} is empty; correct "dataset".')
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        self._version = files_fingerprint(files.items())
        sizes = {key: path.stat().st_size for key, path in files.items()}
        if pin is not None and "files" in pin and pin["files"] != sizes:
            self.announce_change(self._spec.dataset)
        return {"path": str(folder.resolve()), "files": sizes}

    def _failure(self, error: Exception, is_open: bool = True) -> SourceError:
        """Return the SourceError for an error while opening or reading."""
        if self._folder is not None:
            return _explain_folder(error, self._spec, self._folder)
        failure = _explain(error, self._spec)
        # It remembers which repositories were not there, and what they held.
        HfFileSystem.clear_instance_cache()
        for shard in self._shards:
            shard.files.invalidate_cache()
        # Once the hub has named a commit, a refusal may be a whim of what serves its files.
        doubtful = self._pin is not None and is_refusal(error) and (is_open or not is_gated(error))
        if failure.transient or not doubtful:
            return failure
        now = ask("dataset", self._spec.dataset, TIMEOUT, self._version)
        if now is not None and now.transient:
            return now
        reason = now.reason if now else failure.reason if is_gated(error) else refusal(error, self._spec.dataset)
        return SourceError(reason, transient=True, patience=REFUSED_SECONDS)


def _explain(error: Exception, spec: HubSpec) -> SourceError:
    """Return the SourceError for an error of the library, of the hub's client, or of our own."""
    if isinstance(error, StopIteration):
        return _no_rows(spec)
    if isinstance(error, FieldError):
        return SourceError(f'{error} Name one of them in "text_field" or "fields".')
    choices = _CHOICES.search(str(error))
    for words, sentence in _SENTENCES.items():
        if re.search(words, str(error)):
            values = {**spec.model_dump(), "choices": choices[1] if choices else "several"}
            return SourceError(sentence.format_map(values))
    return explain(error, spec.dataset)


def _explain_folder(error: Exception, spec: HubSpec, folder: Path) -> SourceError:
    """Return the SourceError for an error with files on this machine."""
    if not folder.is_dir() and not isinstance(error, SourceError):
        gone = f"the folder {folder} is not there any more; was it moved, or is its disk not mounted?"
        return SourceError(gone, transient=True)
    if (cause := _os_error(error)) is not None:
        reason = f"{cause.filename or folder} cannot be read ({cause.strerror or cause})"
        return SourceError(reason, transient=not _cannot_be_opened(error))
    if spec.folder is None and isinstance(error, FileNotFoundError):  # the library finds no data files
        return not_downloaded(spec.dataset)
    return _explain(error, spec)


def _os_error(error: Exception) -> OSError | None:
    """Return the error of the operating system that led to `error`."""
    return next((link for link in causes(error) if isinstance(link, OSError) and link.errno is not None), None)


def _cannot_be_opened(error: Exception) -> bool:
    """Whether a file has gone or is not for us, rather than that its disk fails."""
    return isinstance(_os_error(error), (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError))


def _no_rows(spec: HubSpec) -> SourceError:
    return SourceError(f'the split "{spec.split}" of {spec.dataset} holds no rows; correct "split" or "config"')
