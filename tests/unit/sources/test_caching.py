"""What the cache knows of a source, and records beside the cached rows."""

from pathlib import Path

from sources.caching import read_record, write_record

RECORD = {"text": "{}", "eos_id": 0, "pad_id": None, "fast": True}


def test_a_record_with_a_flipped_bit_is_absent(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    assert read_record(path) is None and read_record(None) is None
    write_record(path, RECORD)
    assert read_record(path) == RECORD
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_record(path) in (None, RECORD)
    path.write_bytes(whole[:-3])
    assert read_record(path) is None


def test_a_folder_that_is_not_there_takes_none(tmp_path: Path):
    write_record(tmp_path / "absent" / "tokenizer.json", RECORD)
    assert not list(tmp_path.iterdir())
