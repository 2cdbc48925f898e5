"""Texts that must not be trained on: all must be readable, and the cache stands in for those that are gone."""

import gzip
import shutil
from pathlib import Path

import pytest

from shard_cache import ShardCache
from sources.config import DataConfig
from sources.decontamination import forbidden_ngrams, forbidden_texts
from sources.rows.filters import ngram_hashes
from sources.source import SourceError, SourceGone


@pytest.fixture
def exams(tmp_path: Path, texts: list[str]) -> Path:
    folder = tmp_path / "exams"
    folder.mkdir()
    (folder / "whole.txt").write_text(texts[0], encoding="utf-8")
    return folder


def test_decontamination_texts_must_all_be_readable(exams: Path, texts: list[str]):
    assert list(forbidden_texts(str(exams))) == [texts[0]]
    (exams / "half.txt.gz").write_bytes(gzip.compress(texts[1].encode())[:-20])
    with pytest.raises(SourceError, match=r"half.txt.gz: is damaged .*; mend that or take it out"):
        list(forbidden_texts(str(exams)))


def test_the_cache_stands_in_for_texts_that_are_gone(exams: Path, tmp_path: Path, texts: list[str]):
    (tmp_path / "other.txt").write_text(texts[1], encoding="utf-8")
    config = DataConfig(decontaminate=[str(exams), str(tmp_path / "other.txt")])
    cache = ShardCache(tmp_path / "cache", 1.0)
    expected = set(ngram_hashes(texts[0])) | set(ngram_hashes(texts[1]))
    assert forbidden_ngrams(config, cache) == expected and not cache.notices
    shutil.rmtree(exams)
    again = ShardCache(tmp_path / "cache", 1.0)
    assert forbidden_ngrams(config, again) == expected
    (notice,) = again.notices
    assert notice.startswith(f"data.decontaminate: what the cache knows of {exams} is used: {exams} does not exist")
    for cache in (None, ShardCache(tmp_path / "another", 1.0)):
        with pytest.raises(SourceGone, match="exams does not exist"):
            forbidden_ngrams(config, cache)


def test_texts_that_have_changed_are_read_again(exams: Path, tmp_path: Path, texts: list[str]):
    config = DataConfig(decontaminate=[str(exams)])
    forbidden_ngrams(config, ShardCache(tmp_path / "cache", 1.0))
    (exams / "whole.txt").write_text(texts[2], encoding="utf-8")
    assert forbidden_ngrams(config, ShardCache(tmp_path / "cache", 1.0)) == set(ngram_hashes(texts[2]))
    (exams / "whole.txt").write_bytes(b"")  # changed too, though nothing can be read
    with pytest.raises(SourceError, match="holds no file"):
        forbidden_ngrams(config, ShardCache(tmp_path / "cache", 1.0))
    shutil.rmtree(exams)
    assert forbidden_ngrams(config, ShardCache(tmp_path / "cache", 1.0)) == set(ngram_hashes(texts[2]))
