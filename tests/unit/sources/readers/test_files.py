"""Every kind of file: what is read, what is skipped and counted, and that reading resumes exactly from any cursor."""

import bz2
import gzip
import json
import lzma
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sources.config import FilesSpec
from sources.readers.files import FilesSource
from sources.source import SourceError


def open_files(path, pin=None, **options) -> FilesSource:
    return FilesSource(FilesSpec(type="files", path=str(path), **options), pin)


def read_all(source) -> list[str]:
    return [text for shard in range(source.num_shards) for text, _ in source.read(shard, None)]


def assert_resumable(source) -> None:
    """From every cursor the same documents follow (all of one shard's cursors when there are few)."""
    for shard in range(source.num_shards):
        documents = list(source.read(shard, None))
        for number in range(0, len(documents), max(1, len(documents) // 25)):
            cursor = json.loads(json.dumps(documents[number][1]))
            assert list(source.read(shard, cursor)) == documents[number + 1 :]


def test_text_files_are_documents_in_a_fixed_order(tmp_path, texts):
    for number, text in enumerate(texts[:40]):
        folder = tmp_path / f"part{number % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:02}.{'md' if number % 2 else 'py'}").write_text(text, encoding="utf-8")
    source = open_files(tmp_path)
    assert source.num_shards == 40
    found = read_all(source)
    assert sorted(found) == sorted(texts[:40])
    assert found != texts[:40]
    assert read_all(open_files(tmp_path)) == found
    assert_resumable(source)
    assert sorted(read_all(open_files(tmp_path, glob="**/*.md"))) == sorted(texts[1:40:2])
    assert read_all(open_files(tmp_path / "part0" / "00.py")) == [texts[0]]


@pytest.mark.parametrize("packed", [False, True])
def test_large_texts_are_read_in_pieces_at_paragraphs(tmp_path, texts, packed):
    whole = "\n\n".join(texts * 3)
    assert len(whole) > 1_000_000
    name = "large.txt.gz" if packed else "large.txt"
    (tmp_path / name).write_bytes(gzip.compress(whole.encode()) if packed else whole.encode())
    source = open_files(tmp_path)
    pieces = read_all(source)
    assert "".join(pieces) == whole
    assert len(pieces) > 15 and max(map(len, pieces)) <= 64 * 1024
    assert sum(piece.endswith("\n\n") for piece in pieces) > 0.9 * len(pieces)
    assert_resumable(source)


def test_a_large_line_is_never_cut_inside_a_character(tmp_path):
    whole = "aé€😀" * 150_000
    (tmp_path / "line.txt").write_text(whole, encoding="utf-8")
    source = open_files(tmp_path)
    assert "".join(read_all(source)) == whole
    assert not source.counts


def test_json_lines_parquet_and_their_fields(tmp_path, texts):
    rows = [{"body": {"text": text}, "id": number} for number, text in enumerate(texts[:30])]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines + "\nnot json\n" + '{"body": null}\n[1]\n')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet", row_group_size=7)
    source = open_files(tmp_path, text_field="body.text")
    assert sorted(read_all(source)) == sorted(texts[:30] * 3)
    assert source.counts == {"lines that are not JSON": 1, "rows without text": 2}
    assert_resumable(source)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_packed_json_lines_and_texts_are_read(tmp_path, texts, suffix):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[:30]).encode()
    pack = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    }
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack[suffix](lines))
    (tmp_path / f"b.md{suffix}").write_bytes(pack[suffix](texts[30].encode()))
    (tmp_path / f"broken.jsonl{suffix}").write_bytes(pack[suffix](lines)[:-9])
    source = open_files(tmp_path)
    found = read_all(source)
    assert set(found) == set(texts[:31]) and found.count(texts[30]) == 1
    assert source.counts == {"damaged files": 1} and source.notices[0].startswith("broken.jsonl")
    assert_resumable(source)


def test_other_packed_files_are_named(tmp_path, texts):
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(json.dumps({"text": texts[0]}).encode()))
    (tmp_path / "b.txt").write_text(texts[1], encoding="utf-8")
    source = open_files(tmp_path)
    assert read_all(source) == [texts[1]]
    assert source.counts == {"packed files": 1}
    assert source.notices == ["a.jsonl.xz: is packed in a way that is not read; unpack it or use gzip"]


def test_files_without_rows_are_named(tmp_path, texts):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    (tmp_path / "good.jsonl").write_text(json.dumps({"text": texts[0]}) + "\n", encoding="utf-8")
    source = open_files(tmp_path)
    assert read_all(source) == [texts[0]]
    assert source.counts == {"files without rows": 2}
    assert sorted(source.notices) == [f"empty.{kind}: holds no rows and is skipped" for kind in ("jsonl", "parquet")]
    assert not list(source.read(0, {"file": "good.jsonl", "at": 10**6}))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.jsonl").touch()
    with pytest.raises(SourceError, match=r"bare holds no file but empty ones; put text there"):
        open_files(tmp_path / "bare")


def test_a_damaged_page_is_named_as_damage(tmp_path, texts):
    pq.write_table(pa.table({"text": texts[:50]}), tmp_path / "a.parquet", row_group_size=10, use_dictionary=False)
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        begin = file.metadata.row_group(2).column(0).data_page_offset
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[begin : begin + 20] = b"\xff" * 20
    (tmp_path / "a.parquet").write_bytes(data)
    source = open_files(tmp_path)
    assert read_all(source) == texts[:20]
    assert source.counts == {"damaged files": 1} and "a.parquet: is damaged (" in source.notices[0]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_rows_are_joined_in_fixed_groups(tmp_path, kind):
    """Rows without a text, of other columns or too long belong to a group without being part of its text."""
    rows = [{"text": f"sentence {number}"} for number in range(50)]
    rows[7] = rows[8] = {"text": None}
    rows[20:30] = [{"text": " "}] * 10
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / f"a.{kind}").write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    source = open_files(tmp_path, join_rows=10)
    groups = [rows[start : start + 10] for start in (0, 10, 30, 40)]
    expected = ["\n".join(row["text"] for row in group if row["text"]) for group in groups]
    assert read_all(source) == expected and source.counts["rows without text"] == 12
    assert_resumable(source)
    assert source.fingerprint() != open_files(tmp_path).fingerprint()
    rest = open_files(tmp_path, join_rows=16)
    assert [text.count("\n") for text in read_all(rest)] == [13, 5, 15, 1]


def test_joined_rows_are_bounded_as_texts_are(tmp_path):
    with (tmp_path / "a.jsonl").open("w") as stream:
        for number in range(6):
            stream.write(json.dumps({"text": str(number) * (12_000_000 if number < 3 else 9)}) + "\n")
    source = open_files(tmp_path, join_rows=3)
    assert read_all(source) == ["\n".join(str(number) * 9 for number in (3, 4, 5))]
    assert source.counts == {"texts that are too long": 1}


def test_a_json_document_is_a_text(tmp_path):
    text = json.dumps({"name": "preset", "list": list(range(9))}, indent=2)
    (tmp_path / "preset.json").write_text(text)
    assert read_all(open_files(tmp_path)) == [text]


def test_missing_fields_are_announced_with_the_columns(tmp_path, texts):
    pq.write_table(pa.table({"txet": texts[:3]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps({"body": "x"}) + "\n")
    source = open_files(tmp_path)
    assert read_all(source) == []
    assert len(source.notices) == 2
    assert any("a.parquet: this file has no column 'text' (did you mean \"txet\"?)" in note for note in source.notices)
    read_all(source)
    assert len(source.notices) == 2, "announced once"


@pytest.mark.parametrize(
    "text_field, columns",
    [("question", ["query", "question"]), ("meta.text", ["meta.text"]), ("query.text", ["question"])],
)
def test_json_lines_and_parquet_find_the_same_columns(tmp_path, texts, text_field, columns):
    """By another name, with a dot in the name, and both; in JSON lines also where it changes from row to row."""
    nested = text_field == "query.text"
    rows = [{columns[n % len(columns)]: {"text": text} if nested else text} for n, text in enumerate(texts[:20])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for column in columns:
        table = pa.Table.from_pylist([row for row in rows if column in row])
        pq.write_table(table, tmp_path / f"{column}.parquet")
    source = open_files(tmp_path, text_field=text_field)
    assert sorted(read_all(source)) == sorted(texts[:20] * 2)
    assert not source.counts
    assert len(source.notices) == (0 if text_field == "meta.text" else 2)
    assert_resumable(source)


def test_rows_with_ever_other_keys_are_announced_once(tmp_path, texts):
    rows = [{f"key{number}": text} for number, text in enumerate(texts[:20])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = open_files(tmp_path)
    assert read_all(source) == [] and source.counts == {"rows without text": 20}
    assert len(source.notices) == 1


def test_binary_damaged_hidden_and_wrongly_encoded_files(tmp_path, texts):
    (tmp_path / "good.txt").write_text(texts[0], encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 and more".encode("latin-1"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\0")
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": texts[1]}).encode() * 99)[:200])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "empty.txt").write_text("")
    source = open_files(tmp_path)
    assert sorted(read_all(source)) == sorted([texts[0], "caf and more"])
    assert source.counts["binary files"] == 1
    assert source.counts["damaged files"] == 2
    assert source.counts["files with bytes that are not UTF-8 (left out)"] == 1
    assert sum("broken" in note for note in source.notices) == 2


def test_damage_ends_only_the_reading_of_its_file(tmp_path, texts):
    packed = bytearray(gzip.compress("".join(texts[:40]).encode()))
    packed[10] ^= 0xFF  # the first byte behind the header: zlib's error, not gzip's
    (tmp_path / "flipped.txt.gz").write_bytes(packed)
    bad = pa.array([texts[0].encode(), b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "latin.parquet", row_group_size=1)
    (tmp_path / "good.txt").write_text(texts[1], encoding="utf-8")
    source = open_files(tmp_path)
    assert sorted(read_all(source)) == sorted(texts[:2])
    assert source.counts == {"damaged files": 2}
    assert sorted(notice.split(":")[0] for notice in source.notices) == ["flipped.txt.gz", "latin.parquet"]


@pytest.mark.parametrize("nested", ["[" * 200_000, '{"a":' * 5000, '{"text": ' + "[" * 600 + '"x"' + "]" * 600 + "}"])
def test_a_line_of_deep_nesting_does_not_end_the_reading(tmp_path, texts, nested):
    lines = [nested, json.dumps({"text": texts[0]})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.json").write_text("\n".join(reversed(lines)), encoding="utf-8")
    (tmp_path / "c.json").write_text(nested, encoding="utf-8")
    source = open_files(tmp_path)
    found = read_all(source)
    assert found.count(texts[0]) == 2
    readable = nested.endswith("}")  # by the template, however deep it is
    assert found.count("x") == (3 if readable else 0)
    assert source.counts["lines that are not JSON"] == (0 if readable else 2)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_a_line_of_any_length_is_skipped_in_little_memory(tmp_path, texts, name):
    """The first line is 100 MB, and the one behind it just short enough."""
    most = json.dumps({"text": texts[1]}).encode()
    most += b" " * (32 * 1024**2 - len(most) - 1) + b"\n"
    lines = [b'{"text": "', b"x" * 100_000_000, b'"}\n', most, json.dumps({"text": texts[2]}).encode() + b"\n"]
    with gzip.open(tmp_path / name, "wb", 1) if name.endswith(".gz") else (tmp_path / name).open("wb") as stream:
        stream.writelines(lines)
    lines.clear()
    source = open_files(tmp_path)
    tracemalloc.start()
    documents = list(source.read(0, None))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [text for text, _ in documents] == texts[1:3] and most_bytes < 150_000_000
    assert list(source.read(0, documents[0][1])) == documents[1:]
    assert source.counts == {"lines that are too long": 1}
    assert source.notices == [f"{name}: holds a line of more than 32 MiB, which is skipped"]


def test_resuming_late_in_json_lines_reads_only_the_end(tmp_path, texts):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    source = open_files(tmp_path)
    documents = list(source.read(0, None))
    _, cursor = documents[-10]
    with path.open("r+b") as stream:
        stream.write(b"\xff" * (cursor["at"] - 1))
    assert list(source.read(0, cursor)) == documents[-9:]
    assert not source.counts
