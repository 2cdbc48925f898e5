"""What all sources made of files share: pins, fingerprints, errors, and the same documents in another process."""

import hashlib
import json
import os
import pickle
import subprocess
import sys

import pytest

from sources.config import FilesSpec, HubSpec, PythonPackagesSpec
from sources.decontamination import forbidden_texts
from sources.readers.files import FilesSource
from sources.readers.python_packages import PythonPackagesSource
from sources.registry import probe
from sources.source import SourceError
from tests.helpers.text import REPOSITORY


def open_files(path, pin=None, **options) -> FilesSource:
    return FilesSource(FilesSpec(type="files", path=str(path), **options), pin)


def read_all(source) -> list[str]:
    return [text for shard in range(source.num_shards) for text, _ in source.read(shard, None)]


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        open_files(tmp_path / "none")
    with pytest.raises(SourceError, match=r'no file that matches "\*\*/\*" \(it is empty\)'):
        open_files(tmp_path)


def test_the_nearest_folder_and_the_kinds_of_files_are_named(tmp_path):
    (tmp_path / "notes").mkdir()
    for name in ("a.md", "b.md", "c.docx"):
        (tmp_path / "notes" / name).write_text("text")
    with pytest.raises(SourceError, match=r'nots does not exist .* \(did you mean "notes"\?\); correct'):
        open_files(tmp_path / "nots")
    with pytest.raises(SourceError, match=r'matches "\*.txt" \(there are 2 of .md, 1 of .docx\); correct'):
        open_files(tmp_path / "notes", glob="*.txt")


def test_a_pipe_or_a_device_is_never_opened(tmp_path, texts):
    (tmp_path / "files").mkdir()
    os.mkfifo(tmp_path / "files" / "pipe.txt")
    (tmp_path / "files" / "zero.txt").symlink_to("/dev/zero")
    with pytest.raises(SourceError, match="no file that matches"):
        open_files(tmp_path / "files")
    for path in ("/dev/zero", tmp_path / "files" / "pipe.txt"):
        with pytest.raises(SourceError, match="is neither a file nor a folder"):
            open_files(path)
        assert "is neither a file nor a folder" in probe(FilesSpec(type="files", path=str(path)))
        with pytest.raises(SourceError, match="is neither a file nor a folder"):
            list(forbidden_texts(str(path)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.parquet"])
def test_a_file_that_becomes_a_pipe_is_skipped(tmp_path, texts, name):
    (tmp_path / name).write_bytes(b"something")
    source = open_files(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert read_all(source) == []
    assert source.notices == [f"{name}: cannot be opened (it is not a regular file)"]


def test_a_path_that_cannot_be_opened_is_a_sentence():
    """A name that is too long stands for a folder without permission, which root does not meet."""
    path = "x" * 300
    with pytest.raises(SourceError, match=r"xxx cannot be opened \(File name too long\)"):
        open_files(path)
    with pytest.raises(SourceError, match="cannot be opened"):
        list(forbidden_texts(path))
    assert "cannot be opened (File name too long)" in probe(FilesSpec(type="files", path=path))
    assert HubSpec(type="hf", dataset=path).folder is None


def test_pins_keep_the_shards_and_announce_changes(tmp_path, texts):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(texts[number], encoding="utf-8")
    pin = json.loads(json.dumps(open_files(tmp_path).pin()))
    same = open_files(tmp_path, pin)
    assert same.pin() == pin and not same.notices
    (tmp_path / "new.txt").write_text(texts[9], encoding="utf-8")
    changed = open_files(tmp_path, pin)
    assert changed.num_shards == 5
    assert sorted(read_all(changed)) == sorted([*texts[:5], texts[9]])
    assert "it had 5, now 6" in changed.notices[0]


def test_a_fingerprint_depends_on_files_and_text_field(tmp_path, texts):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(texts[number], encoding="utf-8")
    first = open_files(tmp_path).fingerprint()
    assert json.loads(json.dumps(first)) == first == open_files(tmp_path).fingerprint()
    assert first != open_files(tmp_path, text_field="body").fingerprint()
    os.utime(tmp_path / "0.txt", ns=(0, 0))
    touched = open_files(tmp_path).fingerprint()
    (tmp_path / "1.txt").rename(tmp_path / "other.txt")
    assert len({json.dumps(found) for found in (first, touched, open_files(tmp_path).fingerprint())}) == 3


READ_PICKLED = """
import hashlib, pickle, sys
source = pickle.loads(sys.stdin.buffer.read())
for shard in range(min(source.num_shards, 2)):
    for number, (text, cursor) in zip(range(20), source.read(shard, None)):
        print(hashlib.sha1(text.encode()).hexdigest(), cursor)
"""


@pytest.mark.parametrize("kind", ["files", "python_packages"])
def test_a_source_reads_the_same_in_a_fresh_process(tmp_path, texts, write_json_lines, kind):
    if kind == "files":
        source = open_files(write_json_lines(tmp_path, texts, 3))
    else:
        source = PythonPackagesSource(PythonPackagesSpec(type="python_packages"))
    command = [sys.executable, "-c", READ_PICKLED]
    elsewhere = subprocess.run(command, input=pickle.dumps(source), capture_output=True, cwd=REPOSITORY, check=True)
    here = [
        f"{hashlib.sha1(text.encode()).hexdigest()} {cursor}"
        for shard in range(min(source.num_shards, 2))
        for _, (text, cursor) in zip(range(20), source.read(shard, None), strict=False)
    ]
    assert here and elsewhere.stdout.decode().splitlines() == here
