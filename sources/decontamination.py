"""The texts of `data.decontaminate` as hashes of their word n-grams, kept in the shard cache for when they are gone."""

import base64
import os
from collections.abc import Iterator

import numpy as np

from shard_cache import ShardCache
from sources.caching import read_record, write_record
from sources.config import DataConfig, FilesSpec
from sources.readers.files import FilesSource
from sources.rows.filters import NGRAM, ngram_hashes
from sources.source import SourceError, SourceGone
from storage import digest


def forbidden_ngrams(config: DataConfig, cache: ShardCache | None) -> frozenset[int]:
    """Return the hashes that no document of training may have.

    Raises SourceError when a text cannot be read, for what it holds would be trained on.
    """
    return frozenset().union(*(_ngrams_of(path, cache) for path in config.decontaminate))


def _ngrams_of(path: str, cache: ShardCache | None) -> set[int]:
    key = digest({"path": os.path.abspath(os.path.expanduser(path)), "ngram": NGRAM})[:16]
    record = cache.remember(f"decontaminate-{key}.json") if cache is not None else None
    known = read_record(record)
    try:
        ngrams = {ngram for text in forbidden_texts(path) for ngram in ngram_hashes(text)}
    except SourceGone as error:
        if cache is None or known is None:
            raise
        cache.notices.append(f"data.decontaminate: what the cache knows of {path} is used: {error.reason}")
        return set(np.frombuffer(base64.b64decode(known["ngrams"]), dtype="<i8").tolist())
    made = {"ngrams": base64.b64encode(np.array(sorted(ngrams), dtype="<i8").tobytes()).decode()}
    if record is not None and made != known:
        write_record(record, made)
    return ngrams


def forbidden_texts(path: str) -> Iterator[str]:
    """Yield the texts below `path`. Raises SourceError when one cannot be read."""
    source = FilesSource(FilesSpec(type="files", path=path))
    for shard in range(source.num_shards):
        for text, _ in source.read(shard, None):
            yield text
    if source.notices:
        raise SourceError(f"{path}: {'; '.join(source.notices)}; mend that or take it out of there")
