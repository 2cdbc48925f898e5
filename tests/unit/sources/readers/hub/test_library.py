"""Columns of a split whose first files are damaged or empty, in the formats that the library streams."""

import gzip
import json
from pathlib import Path

import pytest

from sources.readers.hub import library
from sources.readers.hub.library import columns_of_first_row, import_datasets, is_plain_parquet, streamed

GOOD = "".join(json.dumps({"text": f"text {number}", "id": number}) + "\n" for number in range(100)).encode()
BAD, EMPTY = b"no gzip at all", b""


def builder_of(folder: Path, *files: bytes):
    for number, data in enumerate(files):
        packed = data if data is BAD else gzip.compress(data)
        (folder / f"train-{number:05}-of-{len(files):05}.json.gz").write_bytes(packed)
    return import_datasets().load_dataset_builder(str(folder))


@pytest.mark.parametrize("files", [[GOOD], [BAD, GOOD], [EMPTY, BAD, BAD, GOOD], [GOOD, BAD]])
def test_columns_are_those_of_the_first_good_file(tmp_path: Path, files: list[bytes]):
    builder = builder_of(tmp_path, *files)
    dataset = streamed(builder, "train")
    assert list(dataset.features) == ["text", "id"] and dataset.num_shards == len(files)
    assert not is_plain_parquet(builder, list(builder.config.data_files["train"]))


def test_without_a_row_there_are_no_columns(tmp_path: Path):
    with pytest.raises(StopIteration):
        streamed(builder_of(tmp_path, EMPTY, EMPTY), "train")


def test_where_all_files_are_damaged_the_reason_is_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(library, "ASKED_FILES", 2)
    with pytest.raises(gzip.BadGzipFile):
        streamed(builder_of(tmp_path, BAD, BAD, GOOD), "train")


def test_the_first_row_that_can_be_read_has_the_columns(tmp_path: Path):
    dataset = streamed(builder_of(tmp_path, EMPTY, GOOD), "train")
    assert list(columns_of_first_row(dataset)) == ["text", "id"]
