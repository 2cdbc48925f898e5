"""Signals to one process: what is given up, what is an echo, and what ends at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import torch

from engine.control.signals import SIGNALS, Abandoned, SignalWatch, watch_signals
from engine.device.ranks import Agreement, Ranks
from engine.errors import Interrupted
from engine.screen.console import Console
from tests.helpers.processes import start

ALONE = Ranks(0, 1, torch.device("cpu"), None)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[SignalWatch]:
    """Watches in this process, which has something to lose already."""
    monkeypatch.setattr("engine.control.signals.ECHO_SECONDS", 0.05)  # for which it waits at its end
    with watch_signals(ALONE, Console(enabled=False)) as watching:
        watching.training(lambda: "at step 3")
        yield watching


def send(watch: SignalWatch, number: int) -> None:
    os.kill(os.getpid(), number)
    while watch.signal_number is None:
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "agreement"),
    [
        (signal.SIGINT, Agreement(interrupt=1)),
        (signal.SIGTERM, Agreement(terminate=1)),
        (signal.SIGHUP, Agreement(hang_up=1)),
    ],
)
def test_a_signal_is_reported_to_the_ranks(watch: SignalWatch, number: int, agreement: Agreement):
    assert watch.agreement() == Agreement() and not watch.stopping()
    send(watch, number)
    assert watch.agreement() == agreement and watch.stopping() and watch.signal_number == number


@pytest.mark.parametrize("interruptible", [False, True])
def test_micro_batches_are_given_up_at_a_signal(watch: SignalWatch, interruptible: bool):
    """Before the next one, or, where that is possible, within one."""
    begun, done = [], []
    with pytest.raises(Abandoned):
        for micro_batch in watch.abandonable(range(4), interruptible):
            begun.append(micro_batch)
            if micro_batch == 1:
                send(watch, signal.SIGTERM)
            done.append(micro_batch)
    assert begun == [0, 1] and done == ([0] if interruptible else [0, 1])


def test_a_launcher_that_dies_interrupts_a_micro_batch(monkeypatch: pytest.MonkeyPatch):
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr("engine.control.signals.ECHO_SECONDS", 0.05)
    monkeypatch.setattr("engine.control.signals._launchers", lambda: [psutil.Process(launcher.pid)])
    with watch_signals(ALONE, Console(enabled=False)) as watch:
        watch.training(lambda: "at step 3")
        since = time.monotonic()
        with pytest.raises(Abandoned):
            for _ in watch.abandonable(range(4), interruptible=True):
                launcher.kill()
                launcher.wait()
                time.sleep(30)
    assert watch.signal_number == signal.SIGTERM and time.monotonic() - since < 15


def test_without_a_signal_all_micro_batches_come(watch: SignalWatch):
    assert list(watch.abandonable(range(4), True)) == [0, 1, 2, 3]
    send(watch, signal.SIGTERM)  # between two steps nothing is raised
    assert watch.stopping()


def test_handlers_and_threads_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyError), watch_signals(ALONE, Console(enabled=False)):
        assert all(callable(signal.getsignal(number)) for number in SIGNALS)
        raise KeyError
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


@pytest.mark.parametrize("error", [Interrupted(15, "stopped"), RuntimeError("gloo/transport: broken")])
def test_alone_an_error_is_raised_as_it_is(error: Exception):
    with pytest.raises(type(error)) as caught, watch_signals(ALONE, Console(enabled=False)):
        raise error
    assert caught.value is error


WATCHES = """
import os, signal, subprocess, sys, threading, time
import torch
from engine.control import signals
from engine.control.signals import watch_signals
from engine.device.ranks import Ranks
from engine.screen.console import Console
signals.ECHO_SECONDS = 1.0
with watch_signals(Ranks(0, 1, torch.device("cpu"), None), Console()) as watch:
"""
ECHO = """
    watch.training(lambda: "at step 3")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    print(watch.signal_number, watch.stopping())
    time.sleep(1.2)
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(60)
"""
CHILD = """
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    torch.linalg.eig(torch.rand(4000, 4000))  # within which no handler runs
"""
RESTARTS = """
    watch.training(lambda: "at step 3")
    if sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGTERM)
    watch.restart()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_an_echo_is_ignored_and_a_second_signal_ends_at_once(tmp_path):
    process = start(WATCHES + ECHO, cwd=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP, output
    first, last = output.splitlines()
    assert first == "15 True"
    assert last.endswith("stopped: SIGHUP again at step 3; the next start continues from the last snapshot.")


def test_before_the_first_step_a_signal_ends_the_children_too(tmp_path):
    process = start(WATCHES + CHILD, cwd=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    child, last = output.splitlines()
    assert last.endswith("stopped: SIGINT before the first step; there was nothing to save.")
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_during_a_rollback_ends_at_once(when: str, tmp_path):
    """Also one that came in the attempt that diverged, and was to be agreed on."""
    process = start(WATCHES + RESTARTS, when, cwd=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "SIGTERM before the first step" in output, output
