"""faults.c itself, in plain Python processes: it sees what torch and os do to files, and strikes where it is told."""

import errno
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import faults
from tests.faults import CHANGES, Action, read_log
from tests.helpers.processes import environment
from tests.helpers.text import REPOSITORY

pytestmark = pytest.mark.skipif(faults.COMPILER is None, reason="faults.c needs a C compiler")
ARM = """
import fcntl, os, shutil, sys, threading
from pathlib import Path
from tests import faults
folder, log, number, action, error, kinds = sys.argv[1:]
folder = Path(folder)
faults.arm(folder, Path(log), int(number), faults.Action(int(action)), int(error), tuple(kinds.split()))
"""
WORK = """
with open(folder / "new", "wb") as file:
    file.write(b"x" * 100)
    file.flush()
    os.fsync(file.fileno())
(folder / "new").read_bytes()
os.link(folder / "new", folder / "link")
os.replace(folder / "link", folder / "name")
os.mkdir(folder / "below")
os.chdir(folder)
(Path("below") / "new").write_text("seen by its relative path")
shutil.copyfile("new", "below/copy")
(folder.parent / "elsewhere").write_text("not counted")
descriptor = os.open(folder, os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.fsync(descriptor)
os.close(descriptor)
os.truncate("below/copy", 10)
os.chmod("new", 0o600)
os.unlink("new")
shutil.rmtree("below")
"""
TORCH = """
import torch
with open(folder / "file", "wb") as file:
    torch.save({"x": torch.zeros(1000)}, file)
torch.save({"x": torch.zeros(1000)}, folder / "path")
torch.load(folder / "file", weights_only=True)
torch.load(folder / "path", weights_only=True)
"""


WRITE_EACH = """
for name in "abcd":
    try:
        with open(folder / name, "wb", buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        print(name, error.errno)
"""
SYSTEM_CALLS = {
    **dict.fromkeys(("write", "pwrite64", "writev", "sendfile", "truncate", "ftruncate"), "write"),
    **dict.fromkeys(("fsync", "fdatasync"), "sync"),
    **dict.fromkeys(("rename", "renameat", "renameat2"), "rename"),
    **dict.fromkeys(("link", "linkat"), "link"),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), "unlink"),
    **dict.fromkeys(("mkdir", "mkdirat"), "mkdir"),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat"), "chmod"),
    "openat": "create",
}


def run(
    tmp_path: Path, work: str = WORK, number: int = 0, action: Action = Action.COUNT, error: int = 0, kinds: str = ""
) -> tuple[subprocess.CompletedProcess[str], list[faults.Call]]:
    """`work` in a process that is armed, and the calls it made below tmp_path/folder."""
    (tmp_path / "folder").mkdir()
    arguments = [tmp_path / "folder", tmp_path / "log", number, int(action), error, kinds or " ".join(faults.KINDS)]
    finished = subprocess.run(
        [sys.executable, "-c", ARM + work, *map(str, arguments)],
        env=environment(**faults.preloaded()),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return finished, read_log(tmp_path / "log")


def test_every_kind_of_call_is_seen_with_its_paths_and_result(tmp_path: Path):
    finished, calls = run(tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert {call.kind for call in calls} == set(faults.KINDS)
    assert [call.number for call in calls] == list(range(1, len(calls) + 1))
    folder = tmp_path / "folder"
    seen = [(call.kind, call.path.relative_to(folder), call.new_path) for call in calls]
    assert seen[:3] == [("create", Path("new"), None), ("write", Path("new"), None), ("sync", Path("new"), None)]
    assert ("link", Path("new"), folder / "link") in seen and ("rename", Path("link"), folder / "name") in seen
    assert ("create", Path("below/new"), None) in seen and ("sync", Path("."), None) in seen
    assert calls[1].result == 100 and calls[1].inode == (folder / "name").stat().st_ino


def test_torch_writes_and_reads_in_sight(tmp_path: Path):
    _, calls = run(tmp_path, TORCH)
    for name in ("file", "path"):
        written = sum(call.result for call in calls if call.kind == "write" and call.path.name == name)
        assert written == (tmp_path / "folder" / name).stat().st_size
        assert {"create", "open", "read"} <= {call.kind for call in calls if call.path.name == name}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace tells what there is to be seen")
def test_no_change_that_strace_sees_is_missed(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    strace = ["strace", "-f", "-y", "-o", tmp_path / "strace", "-e", f"trace={','.join(SYSTEM_CALLS)}"]
    strace += [part for name, value in faults.preloaded().items() for part in ("-E", f"{name}={value}")]
    work = [sys.executable, "-c", ARM + WORK, tmp_path / "folder", tmp_path / "log", "0", "0", "0", " ".join(CHANGES)]
    subprocess.run([*map(str, strace), *map(str, work)], env=environment(), cwd=REPOSITORY, check=True, timeout=60)
    lines = (tmp_path / "strace").read_text().splitlines()
    lines = lines[next(number for number, line in enumerate(lines) if f"{tmp_path}/folder/new" in line) :]
    theirs = []
    for line in lines:
        name = line.split()[1].partition("(")[0]
        ours = not any(f"{tmp_path}/{other}" in line for other in ("log", "elsewhere"))
        if ours and name in SYSTEM_CALLS and (name != "openat" or "O_CREAT" in line):
            theirs.append(SYSTEM_CALLS[name])
    assert theirs == [call.kind for call in read_log(tmp_path / "log")]


@pytest.mark.parametrize(
    ("action", "size"), [(Action.KILL_BEFORE, 0), (Action.KILL_HALFWAY, 50), (Action.KILL_AFTER, 100)]
)
def test_a_kill_comes_before_within_or_after_the_call(tmp_path: Path, action: Action, size: int):
    finished, calls = run(tmp_path, number=2, action=action)
    assert finished.returncode == -signal.SIGKILL
    assert (tmp_path / "folder" / "new").stat().st_size == size
    assert [call.result for call in calls] == [3, None] or (calls[0].result > 0 and calls[1].result is None)


def test_a_call_fails_once_or_from_then_on(tmp_path: Path):
    for action, failed in ((Action.FAIL_ONCE, "b"), (Action.FAIL_ON, "bcd")):
        below = tmp_path / failed
        below.mkdir()
        finished, calls = run(below, WRITE_EACH, number=2, action=action, error=errno.ENOSPC, kinds="write")
        assert finished.stdout.split() == [part for name in failed for part in (name, str(errno.ENOSPC))]
        assert [call.kind for call in calls] == ["write"] * 4, "other kinds are not counted"


def test_a_short_write_is_gone_on_with(tmp_path: Path):
    finished, calls = run(tmp_path, number=1, action=Action.WRITE_SHORT, kinds="write")
    assert finished.returncode == 0 and [call.result for call in calls][:2] == [50, 50]


def test_the_folder_is_moved_before_the_call(tmp_path: Path):
    (tmp_path / "folder-other").mkdir()
    work = "file = open(folder / 'a', 'wb', buffering=0)\n" + "file.write(b'x')\n" * 2 + "open(folder / 'b', 'wb')"
    finished, calls = run(tmp_path, work, number=2, action=Action.MOVE)
    assert finished.returncode == 0 and [call.kind for call in calls][:2] == ["create", "write"]
    assert (tmp_path / "folder-moved" / "a").read_bytes() == b"xx" and (tmp_path / "folder" / "b").exists()


def test_a_call_by_a_folders_descriptor_is_seen(tmp_path: Path):
    by_descriptor = "held = os.open(folder, os.O_RDONLY)\n(Path(f'/proc/self/fd/{held}') / 'new').write_text('x')"
    _, calls = run(tmp_path, by_descriptor)
    assert ("create", tmp_path / "folder" / "new") in [(call.kind, call.path) for call in calls]
