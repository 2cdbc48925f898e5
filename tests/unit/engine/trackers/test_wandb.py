"""W&B without a network: what it keeps to be uploaded later."""

from pathlib import Path

from tests.helpers.processes import start
from tests.helpers.text import REPOSITORY


def run(folder: Path, **variables: str) -> str:
    worker = REPOSITORY / "tests/helpers/workers/trackers.py"
    variables = {"HOME": str(folder.parent), "NETRC": str(folder.parent / "netrc"), **variables}
    process = start(worker, str(folder), "wandb", cwd=folder.parent, variables=variables)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    return printed


def test_offline_a_resumed_run_continues_its_run(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    printed = run(folder)
    assert "nobody is logged in" in printed and "failed" not in printed
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    assert len({path.name for path in files}) == 1  # the same run
    first, second = (path.read_bytes() for path in files)
    for name in (b"train/loss", b"validation/bits_per_byte", b"learning_rate"):
        assert name in first and name in second
    losses = (b"4.60123", b"4.50123", b"4.40123")  # of steps 4 and 5, which were shown before, and 6
    assert [loss in first for loss in losses] == [True, True, False]
    assert [loss in second for loss in losses] == [False, False, True]
    samples = list(folder.glob("wandb/offline-run-*/files/media/html/sample_*.html"))
    assert samples and all("Once &lt;b&gt; upon a time" in path.read_text() for path in samples)
