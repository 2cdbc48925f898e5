"""engine/control/failure.py: an exception that nobody expected."""

import re
from pathlib import Path

from engine.control import failure
from engine.data.opening import get_tokenizer
from tests.helpers.text import REPOSITORY


def fail() -> Exception:
    try:
        get_tokenizer(None, None, None, None, None, None)  # type: ignore[arg-type]
    except Exception as error:
        return error
    raise AssertionError


def test_it_says_what_was_done_what_failed_and_where_the_traceback_is(tmp_path: Path):
    shown: list[str] = []
    error = fail()
    error.add_note("Saved to checkpoints/lm_current.pth at step 7.")
    assert failure.report(error, tmp_path / "checkpoints", shown.append) == 1
    assert failure.report(fail(), tmp_path / "checkpoints", shown.append, rank=1) == 1
    log = (tmp_path / "checkpoints" / "run.log").read_text()
    assert log.count("Traceback (most recent call last)") == 2, "it is appended"
    assert re.search(r"^\d{4}-.* rank 1, opening the sources and the tokenizer$", log, re.MULTILINE)
    assert shown[0].startswith("a fault while opening the sources and the tokenizer: AttributeError: ")
    assert shown[0].endswith(f"at step 7. The traceback is in {tmp_path}/checkpoints/run.log.")
    assert "Traceback" not in "".join(shown)


def test_what_cannot_be_written_is_shown(tmp_path: Path):
    (tmp_path / "file").touch()
    shown: list[str] = []
    failure.report(ValueError("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"), tmp_path / "file", shown.append)
    assert "run.log cannot be written" in shown[0] and "ValueError" in shown[0] and "QxZv" not in shown[0]


def test_every_activity_is_that_of_a_file():
    assert all((REPOSITORY / name).exists() for name in failure.ACTIVITIES)
