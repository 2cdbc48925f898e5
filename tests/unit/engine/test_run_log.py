"""run.log: what libraries say, without secrets, bounded, and where the run's folder is."""

import logging
import os
import threading
import warnings
from pathlib import Path

import pytest

from engine import run_log
from engine.run_log import FILE_NAME, RunLog, library_log

SECRET = "hf_A1b2C3d4E5f6G7h8"


def test_libraries_write_there_and_nowhere_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    logger = logging.getLogger("DeepSpeed")
    before = list(logger.handlers)
    with library_log(lambda: tmp_path, 0, lambda: None):
        logger.warning("a record with %s", SECRET)
        logging.getLogger("unheard").warning("another")
        warnings.warn(f"a warning with {SECRET}", stacklevel=1)
    assert logger.handlers == before
    text = (tmp_path / FILE_NAME).read_text()
    assert "WARNING DeepSpeed: a record with hf_***" in text and "WARNING unheard: another" in text
    assert "a warning with hf_***" in text and SECRET not in text
    assert capfd.readouterr() == ("", "")


def test_descriptors_lead_there_and_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    log = RunLog(lambda: tmp_path, create=True)
    with log.instead_of(1, 2):
        os.write(1, b"out\n")
        os.system("echo error >&2")
    os.write(1, b"back\n")
    log.close()
    assert (tmp_path / FILE_NAME).read_text() == "out\nerror\n" and capfd.readouterr().out == "back\n"


def test_it_is_bounded_also_for_who_writes_to_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.setattr(run_log, "MAX_BYTES", 1000)
    log = RunLog(lambda: tmp_path, create=True)
    with log.instead_of(2):
        for number in range(100):
            log.write(f"line {number} {'x' * 40}")
            os.write(2, f"raw {number}\n".encode())
    log.close()
    files = [tmp_path / FILE_NAME, tmp_path / f"{FILE_NAME}.1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    assert all(0 < path.stat().st_size < 1200 for path in files)
    assert files[0].read_text().endswith("raw 99\n") and "line 99" in files[0].read_text()


def test_it_goes_where_the_folder_goes(tmp_path: Path):
    """A folder that is moved is still the run's; a file that was archived with an older model is not."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    log = RunLog(lambda: folder, create=True)
    log.write("first")
    (folder / FILE_NAME).rename(tmp_path / "archived")
    log.write("second")
    moved = folder.rename(tmp_path / "moved")
    log.write("third, while the folder cannot be found")
    folder = moved
    log.write("fourth")
    log.close()
    assert (tmp_path / "archived").read_text() == "first\n"
    assert (moved / FILE_NAME).read_text().splitlines()[0] == "second"
    assert (moved / FILE_NAME).read_text().splitlines()[-1] == "fourth"


@pytest.mark.parametrize("obstacle", ["folder", "link", "none"])
def test_what_cannot_be_written_is_dropped(tmp_path: Path, obstacle: str):
    path, target = tmp_path / FILE_NAME, tmp_path / "target"
    if obstacle == "folder":
        path.mkdir()
    elif obstacle == "link":
        target.write_text("untouched")
        path.symlink_to(target)
    log = RunLog(lambda: tmp_path / "none" if obstacle == "none" else tmp_path, create=True)
    with log.instead_of(2):
        log.write("dropped")
    log.close()
    log.write("after its end")
    assert not target.exists() or target.read_text() == "untouched"


def write(log: RunLog) -> None:
    for _ in range(200):
        log.write("x" * 50)


def test_other_ranks_do_not_make_it(tmp_path: Path):
    RunLog(lambda: tmp_path, create=False).write("nowhere")
    assert not list(tmp_path.iterdir())
    first, second = RunLog(lambda: tmp_path, create=True), RunLog(lambda: tmp_path, create=False)
    threads = [threading.Thread(target=write, args=(log,)) for log in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first.close()
    second.close()
    assert set((tmp_path / FILE_NAME).read_text().splitlines()) == {"x" * 50}
