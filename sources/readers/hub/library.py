"""The `datasets` library as it is used here: which files a split has, and what their columns are.

It looks columns up in the first file of a split, and fails where that one is damaged. Here the next ones are asked.
"""

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from sources.readers.damage import is_damage
from sources.readers.hub.streaming import register_zstd

if TYPE_CHECKING:
    from datasets import IterableDataset

ASKED_FILES = 8  # for columns; where these are all damaged, something else is the matter

T = TypeVar("T")


def import_datasets() -> ModuleType:
    import datasets  # takes seconds to import; parquet is read without it once it is open
    from datasets import config

    # By default the library retries a dead endpoint for half an hour. Retries beyond the hub client's are the caller's,
    # who announces them.
    for name in dir(config):
        if name.startswith("STREAMING_") and name.endswith(("_MAX_RETRIES", "_RETRY_INTERVAL")):
            setattr(config, name, 1 if name.endswith("_MAX_RETRIES") else 0)
    datasets.disable_progress_bars()
    register_zstd()
    return datasets


def streamed(builder: Any, split: str) -> "IterableDataset":
    """Return a split as the library streams it, with the columns of its first file that is not damaged.

    Raises StopIteration where the split holds no rows.
    """
    files = builder.config.data_files or {}

    def dataset_from(first: int) -> "IterableDataset":
        # The library looks columns up in the first file of the first split, and keeps them.
        builder.config.data_files = {split: files[split][first:]} if first else files
        return builder.as_streaming_dataset(split=split)

    dataset = _first_undamaged(dataset_from, max(1, len(files.get(split, ()))))
    if builder.config.data_files is not files:
        builder.config.data_files = files
        dataset = builder.as_streaming_dataset(split=split)
    return dataset


def columns_of_first_row(dataset: "IterableDataset") -> dict[str, None]:
    """Return the columns of the first row that can be read; raises StopIteration where there is none."""

    def rows_of(index: int) -> dict[str, Any]:
        return next(iter(dataset.shard(num_shards=dataset.num_shards, index=index)), {})

    return dict.fromkeys(_first_undamaged(rows_of, dataset.num_shards))


def _first_undamaged(read: Callable[[int], T], count: int) -> T:
    """Return the first of `count` things that is neither damaged nor empty; raises as the last one does."""
    failure: Exception = StopIteration()
    for number in range(min(count, ASKED_FILES)):
        for _ in range(2):  # what is damaged is so when it is fetched once more
            try:
                if found := read(number):
                    return found
                break
            except Exception as error:
                if not is_damage(error):
                    raise
                failure = error
    raise failure


def is_plain_parquet(builder: Any, files: list[str]) -> bool:
    """Return whether a split's files are plain parquet and read unfiltered."""
    is_parquet = builder.name == "parquet" and builder.config.filters is None
    return is_parquet and bool(files) and all(file.endswith(".parquet") and "::" not in file for file in files)


def is_plain(feature: Any) -> bool:
    """Return whether a column's Arrow values need no decoding, unlike those of pictures or packed JSON."""
    if isinstance(feature, dict):
        return all(map(is_plain, feature.values()))
    inner = getattr(feature, "feature", None)  # of a list
    return is_plain(inner) if inner is not None else type(feature).__name__ == "Value"
