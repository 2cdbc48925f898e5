"""How much text is estimated of sources that were not read."""

import json
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sources.amounts import SECONDS, estimate
from sources.config import FilesSpec, HubSpec, PdfSpec, PythonPackagesSpec
from sources.readers.files import FilesSource
from sources.readers.hub.reader import HubSource
from sources.readers.pdf.reader import PdfSource
from sources.readers.python_packages import PythonPackagesSource
from tests.helpers.pdf_files import plain_book
from tests.helpers.text import write_topics


def of_files(folder: Path) -> FilesSource:
    return FilesSource(FilesSpec(type="files", path=str(folder)))


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    (tmp_path / "topics").mkdir()
    return [path.read_text() for path in sorted(write_topics(tmp_path / "topics").iterdir())]


def size_of(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def test_plain_files_are_their_sizes(tmp_path: Path, texts: list[str]):
    amount = estimate(of_files(tmp_path / "topics"))
    assert amount.num_bytes == size_of(texts)
    assert 0 < len(amount.sample) <= 50_000


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("copies", [1, 5])
def test_of_files_with_fields_only_the_text_counts(tmp_path: Path, texts: list[str], kind: str, copies: int):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"id": f"{number:032}", "text": text} for number, text in enumerate(texts * copies)]
    if kind == "jsonl":
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", compression="zstd")
    assert estimate(of_files(folder)).num_bytes == pytest.approx(copies * size_of(texts), rel=0.15)


def test_what_it_looks_into_leaves_no_trace(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "some words"}\nno JSON\n')
    source = of_files(tmp_path)
    assert estimate(source).num_bytes == len("some words")
    assert source.counts == Counter() and not source.notices


def test_packed_files_are_not_estimated(tmp_path: Path):
    (tmp_path / "a.txt.gz").write_bytes(b"\x1f\x8b")
    assert estimate(of_files(tmp_path)) is None


def test_pdf_files_are_not_estimated(tmp_path: Path):
    (tmp_path / "a.pdf").write_bytes(plain_book(["Some words on a page that can be read."]))
    assert estimate(PdfSource(PdfSpec(type="pdf", path=str(tmp_path)))) is None


def test_python_packages_are_their_sizes():
    source = PythonPackagesSource(PythonPackagesSpec(type="python_packages"))
    assert estimate(source).num_bytes == sum(file.size for file in source.files)


def test_a_dataset_is_what_it_says_of_itself(tmp_path: Path):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": ["some words"]}), tmp_path / "data" / "train-00000-of-00001.parquet")
    spec = HubSpec(type="hf", dataset=str(tmp_path))
    assert estimate(HubSource(spec)) is None
    splits = "dataset_info:\n  splits:\n  - name: train\n    num_bytes: 5000000\n    num_examples: 1\n"
    (tmp_path / "README.md").write_text(f"---\n{splits}---\n")
    assert estimate(HubSource(spec)).num_bytes == 5_000_000


def test_a_hundred_thousand_files_take_no_time(tmp_path: Path):
    (tmp_path / "a.txt").write_text("some words")
    source = of_files(tmp_path)
    source.files = source.files * 100_000
    begin = time.monotonic()
    assert estimate(source).num_bytes == 100_000 * len("some words")
    assert time.monotonic() - begin < 2 * SECONDS
