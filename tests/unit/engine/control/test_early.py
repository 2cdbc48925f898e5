"""engine/control/early.py: signals before there is a run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from engine.control.early import interruptible, nothing_saved
from engine.errors import Interrupted
from tests.helpers.text import REPOSITORY

PROGRAM = """
import time
from engine.control.early import ends_at_once
with ends_at_once(print):
    print("ready", flush=True)
    try:
        while True:
            time.sleep(0.1)
    except Exception:
        print("swallowed")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_raises_and_the_handlers_are_put_back(number: signal.Signals):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as raised, interruptible():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert raised.value.status == 128 + number and str(raised.value) == nothing_saved(number)
    assert signal.getsignal(number) == before


def test_sighup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_while_libraries_are_imported_a_signal_ends_the_process():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and rest == "SIGTERM before the first step; there was nothing to save.\n"
