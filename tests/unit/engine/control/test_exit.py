"""How the process ends: with its status, whatever a reader's thread or the output does."""

import pytest

from tests.helpers.processes import start

ENDS = """
import atexit, sys, threading
from engine.control.exit import end
from engine.trackers import THREAD
from sources.source import READER
atexit.register(print, "the interpreter shuts down")
names = {"none": [], "other": ["other"], "reader": [READER], "tracker": [THREAD]}
for name in names[sys.argv[1]]:
    threading.Thread(target=threading.Event().wait, name=name, daemon=True).start()
if sys.argv[2] == "full":
    sys.stdout = open("/dev/full", "w")
    print("what cannot be written")
end(5)
"""


@pytest.mark.parametrize(
    ("thread", "output", "shuts_down"),
    [
        ("none", "open", True),
        ("other", "open", True),
        ("reader", "open", False),
        ("tracker", "open", False),
        ("none", "full", False),
    ],
)
def test_a_process_ends_with_its_status(tmp_path, thread: str, output: str, shuts_down: bool):
    """A reader may be deep in a library that does not survive the interpreter's shutdown: it is not waited for."""
    process = start(ENDS, thread, output, cwd=tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 5 and "Traceback" not in said, said
    assert ("the interpreter shuts down" in said) == shuts_down
