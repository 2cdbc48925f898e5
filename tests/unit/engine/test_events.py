import contextlib
import json
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from engine.errors import Interrupted, SaveError
from engine.events import FILE_NAME, MAX_LINE_BYTES, EventLog, lines, read, tokens_reached
from engine.screen.console import Console
from tests.helpers.processes import run_program

STEP = {
    "step": 1200,
    "tokens": 1_234_567,
    "tokens_total": 1_234_567,
    "share": 0.0123,
    "loss": 4.5,
    "lr": 1e-3,
    "grad_norm": 0.5,
    "tokens_per_second": 76_000.0,
    "data_wait": 0.001,
    "eta_seconds": 3661.0,
    "sources": {"wikipedia": 4.25, "c4": 4.75},
    "auxiliary": {},
}


def test_events_are_appended_as_lines_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        metrics = EventLog(tmp_path, Console())
        metrics.write("step", **STEP)
        metrics.close()
    lines = (tmp_path / FILE_NAME).read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["event"] == "step" and json.loads(lines[0])["time"] > 1.7e9
    shown = capsys.readouterr().out.splitlines()[0]
    for figure in ("1,200", "1.23M", "1.2%", "4.5000", "76.0k", "1.00e-03"):
        assert figure in shown, shown


@pytest.mark.parametrize(("mfu", "shown"), [(0.4123, True), (None, False)])
def test_mfu_is_shown_where_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str], mfu, shown: bool):
    metrics = EventLog(tmp_path, Console())
    metrics.write("step", **STEP, mfu=mfu)
    metrics.close()
    assert ("MFU 41.2%" in capsys.readouterr().out) == shown


def test_other_ranks_write_and_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metrics = EventLog(tmp_path, Console(enabled=False), enabled=False)
    metrics.write("step", **STEP)
    metrics.close()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_a_line_cut_by_a_kill_hurts_no_other(tmp_path: Path):
    (tmp_path / FILE_NAME).write_text('{"event": "step", "time": 1}\n{"event": "st')
    metrics = EventLog(tmp_path, Console(enabled=False))
    metrics.write("save", path="x", tokens_total=1, seconds=1.0)
    metrics.close()
    assert [event["event"] for event in read(tmp_path)] == ["step", "save"]


@pytest.mark.parametrize("line", ['{"event": "step", "tokens_total": "4608"}', "[" * 100_000, "1" * 5_000, "null", "7"])
def test_a_line_that_is_no_event_hurts_no_start(tmp_path: Path, line: str):
    (tmp_path / FILE_NAME).write_text('{"event": "step", "tokens_total": 512}\n' + line + "\n")
    assert tokens_reached(tmp_path) == 512


def test_a_pipe_or_a_way_out_in_the_files_place_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(tmp_path / FILE_NAME)
    assert read(tmp_path) == []
    metrics = EventLog(tmp_path, Console())
    metrics.write("step", **STEP)
    assert "cannot be written" in capsys.readouterr().out
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).symlink_to("/dev/zero")
    assert read(tmp_path) == []


def test_a_start_reads_the_end_alone(tmp_path: Path):
    """However long the history is; this one is mostly a hole, and a line without an end."""
    with (tmp_path / FILE_NAME).open("w") as file:
        file.write('{"event": "step", "tokens_total": 1}\n')
        file.truncate(2**30)
        file.seek(2**30)
        file.write('\n{"event": "step", "tokens_total": 512}\n{"event": "save"}\n{"event": "step", "tok')
    tracemalloc.start()
    assert tokens_reached(tmp_path) == 512
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("last", "number"), [(0, 0), (3, 0), (4, 1), (12, 1), (13, 2), (19, 2), (20, 3), (26, 4), (99, 4)]
)
def test_the_last_bytes_hold_whole_lines_alone(tmp_path: Path, last: int, number: int):
    whole = [b"first\n", b"second\n", b"x" * 8 + b"\n", b"last"]
    (tmp_path / FILE_NAME).write_bytes(b"".join(whole))
    assert list(lines(tmp_path, last)) == whole[4 - number :]


def test_a_line_too_long_for_an_event_is_left_out(tmp_path: Path):
    long = b"y" * (3 * MAX_LINE_BYTES)
    (tmp_path / FILE_NAME).write_bytes(b"a\n" + long + b"\nb\n" + long[:MAX_LINE_BYTES] + b"\nc\n" + long)
    assert list(lines(tmp_path, 2**40)) == [b"a\n", b"b\n", b"c\n"]


def test_a_device_in_the_files_place_is_neither_read_nor_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(tmp_path / FILE_NAME, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    assert read(tmp_path) == []
    metrics = EventLog(tmp_path, Console())
    metrics.write("step", **STEP)
    assert "cannot be written: it is not a regular file." in " ".join(capsys.readouterr().out.split())


def test_numbers_that_json_lacks_become_null(tmp_path: Path):
    metrics = EventLog(tmp_path, Console(enabled=False))
    metrics.write("step", **{**STEP, "loss": float("nan"), "sources": {"a": float("inf")}})
    metrics.close()
    line = (tmp_path / FILE_NAME).read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["loss"] is None


def test_a_source_named_like_markup_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metrics = EventLog(tmp_path, Console())
    metrics.write("source", name="[red]", what="notice", message="[/] closes nothing")
    metrics.close()
    assert "source [red]: [/] closes nothing" in capsys.readouterr().out


def test_what_a_terminal_would_obey_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hostile = "\x1b[31mred\x1b]0;title\x07 \x9b2J \x08\x7f\r\ttabbed\nnext"
    console = Console()
    console.say(hostile)
    console.warn(hostile)
    console.error(hostile)
    metrics = EventLog(tmp_path, console, enabled=True)
    metrics.write("source", name=hostile, what="notice", message=hostile)
    figures = {"ce": 1.0, "perplexity": 2.7, "bits_per_byte": 1.0, "tokens": 5, "tokens_total": 5, "sources": {}}
    metrics.write("evaluation", **figures, sample={"prompt": hostile, "text": hostile})
    shown = capsys.readouterr().out
    assert shown.count("title") == shown.count("next") == 7
    assert all(character.isprintable() or character in "\n\t" for character in shown)
    assert " tabbed" in shown and "\N{REPLACEMENT CHARACTER}[31mred" in shown


def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.write_text("of somebody else")
    folder.mkdir()
    (folder / FILE_NAME).symlink_to(outside)
    metrics = EventLog(folder, Console())
    metrics.write("step", **STEP)
    metrics.write("step", **STEP)
    shown = " ".join(capsys.readouterr().out.split())
    assert outside.read_text() == "of somebody else"
    assert shown.count("cannot be written: it is a symbolic link.") == 1 and shown.count("1.23M tokens") == 2
    (folder / FILE_NAME).unlink()
    metrics.write("step", **STEP)
    metrics.close()
    assert len(read(folder)) == 1


FULL = """
import resource, sys
from pathlib import Path
from engine.screen.console import Console
from engine.events import EventLog
folder = Path(sys.argv[1])
metrics = EventLog(folder, Console())

def write(number, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    metrics.write("notice", number=number, text="x" * 100)

write(0, resource.RLIM_INFINITY)
size = metrics.path.stat().st_size
for number in (1, 2, 3):
    write(number, size + 30)  # the system stops the write within the line, as it does on a full disk
write(4, resource.RLIM_INFINITY)
for number in (5, 6):
    write(number, metrics.path.stat().st_size)
write(7, resource.RLIM_INFINITY)
metrics.close()
"""


def test_a_full_disk_is_reported_once_and_spoils_no_later_line(tmp_path: Path):
    status, output = run_program(FULL, str(tmp_path))
    assert status == 0 and " ".join(output.split()).count("cannot be written: File too large") == 2, output
    assert [event["number"] for event in read(tmp_path)] == [0, 4, 7]


def test_a_stage_has_a_beginning_and_its_seconds(tmp_path: Path):
    log = EventLog(tmp_path, Console(enabled=False))
    with log.stage("tokenizer"):
        begun = read(tmp_path)[-1]
    with pytest.raises(RuntimeError), log.stage("model"):
        raise RuntimeError
    log.close()
    assert (begun["event"], begun["name"], begun["seconds"]) == ("stage", "tokenizer", None)
    ended, failed = read(tmp_path)[1:]
    assert ended["name"] == "tokenizer" and 0 <= ended["seconds"] < 5
    assert failed["name"] == "model" and failed["seconds"] is None


def test_events_of_a_start_that_is_refused_are_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = EventLog(tmp_path, Console())
    with pytest.raises(SaveError), log.ending(), log.held():
        log.write("source", name="topics", what="notice", message="a sentence")
        raise SaveError("No space.")
    assert "a sentence" in capsys.readouterr().out and not list(tmp_path.iterdir())
    with log.held(), log.stage("checkpoint"):
        assert not list(tmp_path.iterdir())
    log.write("step", **STEP)
    log.close()
    assert [event["event"] for event in read(tmp_path)] == ["stage", "stage", "step"]


@pytest.mark.parametrize(
    ("error", "how", "message"),
    [
        (None, "finished", None),
        (Interrupted(15, "SIGTERM at step 3; saved."), "stopped", "SIGTERM at step 3; saved."),
        (SaveError("No space."), "failed", "No space."),
        (ZeroDivisionError("by zero\nand more"), "failed", "ZeroDivisionError: by zero"),
    ],
)
def test_the_last_event_says_how_it_ended(tmp_path: Path, error: Exception | None, how: str, message: str | None):
    log = EventLog(tmp_path, Console(enabled=False))
    with contextlib.suppress(Exception), log.ending():
        if error is not None:
            raise error
    log.close()
    (event,) = read(tmp_path)
    assert (event["event"], event["how"], event["message"]) == ("end", how, message)
