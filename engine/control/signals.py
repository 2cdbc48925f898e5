"""What ends a run from outside: SIGINT, SIGTERM and SIGHUP, a launcher that dies, a rank that is lost.

Until the first optimizer step is done there is nothing to lose, and a signal ends all ranks at once. From then on the
ranks agree on it, save and end; a second signal, unless it is an echo of the first, ends at once. A thread watches,
since a handler does not run while the main thread compiles, computes or waits in C++.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any, NoReturn, TypeVar

import psutil
import torch.distributed as dist

from engine.control.health import POLL_SECONDS, STORE_SECONDS, HealthMonitor, Termination
from engine.device.ranks import Agreement, Ranks
from engine.errors import Interrupted, RankLost, first_line
from engine.events import Sink

SIGNALS = (SIGINT, SIGTERM, SIGHUP)  # the last is a terminal that closes
# A signal is often delivered twice: `timeout` sends it to the process and to its group, wrappers forward a Ctrl-C that
# the process has received too, DeepSpeed's launcher sends SIGINT and then SIGTERM. Such an echo is no second request.
ECHO_SECONDS, LAUNCHERS_ECHO_SECONDS = 0.5, 3.0
GRACE_SECONDS = 15.0  # for the main thread to end by itself when a rank is lost
PRINT_SECONDS = 5.0  # for a blocked output; with busy cores the panel's last picture alone may take over a second

T = TypeVar("T")


class Abandoned(BaseException):
    """A step or an evaluation is abandoned because of a signal. Not an Exception, so that nothing on the way catches
    it."""


class ProcessEnd:
    """Ends this process at once, with one sentence from rank 0 (from its deputies where rank 0 is lost)."""

    def __init__(self, ranks: Ranks, console: Sink):
        self.health = HealthMonitor(ranks) if ranks.world_size > 1 else None
        self.position: Callable[[], str] | None = None  # how far the run is ("at step 12"), once there is a step
        self._ranks, self._console = ranks, console
        self._ending = threading.Lock()  # two threads may find a reason at once, and one sentence is enough

    def end(self, termination: Termination) -> NoReturn:
        """End this process and all that it started, whatever the main thread is doing; the other ranks are told."""
        if self.health is not None:
            self.health.announce(termination)
        self._ending.acquire()  # never released
        printer = threading.Thread(target=self._print, args=(self.sentence(termination),), daemon=True)
        printer.start()
        printer.join(PRINT_SECONDS)
        if self.health is not None and self._ranks.is_main:
            time.sleep(STORE_SECONDS / 2)  # this process may host the store, and the others must read it
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(termination.status)

    def sentence(self, termination: Termination) -> str:
        """Return what the console is to show; where rank 0 is lost, rank 1's shows it, and that of other machines."""
        if termination.lost == 0 and self._ranks.is_deputy:
            self._console.enabled = True
        if self.position is None:
            return f"{termination.cause} before the first step; there was nothing to save."
        return f"{termination.cause} {self.position()}; the next start continues from the last snapshot."

    def _print(self, sentence: str) -> None:
        with contextlib.suppress(OSError):
            self._console.error(sentence)
            sys.stdout.flush()


class SignalWatch:
    """See the module's docstring. `signal_number` is the signal that asked this process to stop, once there is one."""

    def __init__(self, ranks: Ranks, console: Sink):
        self.signal_number: int | None = None
        self._ranks, self.process = ranks, ProcessEnd(ranks, console)
        self._asked_at: float | None = None
        self._interruptible = False  # whether a signal may raise Abandoned
        self._lost_seconds = 0.0  # since a rank was lost
        self._launchers = _launchers()
        self._echo_seconds = LAUNCHERS_ECHO_SECONDS if self._launchers or ranks.world_size > 1 else ECHO_SECONDS
        # The interpreter writes each signal's number to a socket at once, whatever the main thread is doing.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._restore = contextlib.ExitStack()
        if threading.current_thread() is threading.main_thread():  # which alone may set handlers
            wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._restore.callback(signal.set_wakeup_fd, wakeup_before)
            ignored = signal.getsignal(SIGHUP) is signal.SIG_IGN  # by nohup
            for number in (SIGINT, SIGTERM) if ignored else SIGNALS:
                self._restore.callback(signal.signal, number, signal.signal(number, self._handle))
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()

    def agreement(self) -> Agreement:
        """Return what this rank reports of signals."""
        number = self.signal_number
        return Agreement(interrupt=number == SIGINT, terminate=number == SIGTERM, hang_up=number == SIGHUP)

    def stopping(self) -> bool:
        """Return whether any rank received a signal. All ranks must call it."""
        return self._ranks.agree(self.agreement()).signalled

    def training(self, position: Callable[[], str]) -> None:
        """From now on there is something to lose; `position` says how far the run is ("at step 12")."""
        self.process.position = position

    def restart(self) -> None:
        """A run starts over from its checkpoint: a signal, also one that came before, ends all at once again."""
        self.process.position = None
        if self.signal_number is not None:
            self._receive(self.signal_number)

    def abandonable(self, micro_batches: Iterable[T], interruptible: bool) -> Iterator[T]:
        """Iterate over `micro_batches`; raise Abandoned before one once any rank has received a signal.

        In a world of one that is `interruptible` a signal raises it at once, within a micro-batch. All ranks must
        iterate.
        """
        self._interruptible = interruptible and self._ranks.world_size == 1
        try:
            for micro_batch in micro_batches:
                if self.stopping():
                    raise Abandoned
                yield micro_batch
        finally:
            self._interruptible = False

    def raise_if_lost(self, error: Exception) -> None:
        """Raise RankLost where `error` says that another rank is lost; otherwise tell the others that this one ends."""
        health = self.process.health
        if health is None or isinstance(error, Interrupted):
            return
        # A collective fails like this because its other side is gone, or did not come in time.
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            place = self._ranks.place(self._ranks.rank)
            health.announce(Termination(f"Rank {place} has ended ({first_line(error)})", RankLost.status))
            return
        termination = health.find_lost()
        if termination.status != RankLost.status:
            self.process.end(termination)  # the other rank is not lost: a signal ended it
        raise RankLost(self.process.sentence(termination)) from None

    def close(self) -> None:
        """Restore handlers, threads and connections."""
        if self._asked_at is not None:  # an echo would reach the restored handlers and kill a process that has saved
            time.sleep(max(0.0, self._asked_at + ECHO_SECONDS - time.monotonic()))
        if self.process.health is not None:
            self.process.health.leave()
        self._restore.close()
        self._writer.close()  # ends the thread
        self._thread.join()
        self._reader.close()

    def _handle(self, number: int, _frame: Any) -> None:
        """Called in the main thread, once it is back in Python."""
        self.signal_number = self.signal_number or number
        if self._interruptible:
            self._interruptible = False
            raise Abandoned

    def _run(self) -> None:
        """The thread: reads signals, checks launchers and ranks."""
        waiting = select.poll()  # select takes no descriptor above 1023, which a long-lived process may reach
        waiting.register(self._reader, select.POLLIN)
        while True:
            if waiting.poll(POLL_SECONDS * 1000):
                numbers = self._reader.recv(64)
                if not numbers:
                    return
                for number in numbers:
                    if number in SIGNALS:
                        self._receive(number)
            elif self._asked_at is None and any(_is_gone(process) for process in self._launchers):
                # This process must not outlive its launcher for long; a handled signal is heard within a micro-batch.
                if signal.getsignal(SIGTERM) == self._handle:
                    os.kill(os.getpid(), SIGTERM)
                else:
                    self._receive(SIGTERM)
            if self.process.health is not None:
                self._check_ranks(self.process.health)

    def _receive(self, number: int) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        if self.process.position is None:
            self.process.end(Termination(name, 128 + number))
        if self._asked_at is None:
            self._asked_at, self.signal_number = now, self.signal_number or number
        elif now - self._asked_at > self._echo_seconds:
            self.process.end(Termination(f"{name} again", 128 + number))

    def _check_ranks(self, health: HealthMonitor) -> None:
        health.check_host()
        if (termination := health.termination) is None:
            return
        self._lost_seconds += POLL_SECONDS
        # The main thread usually notices a lost rank as well, and then ends regularly.
        if termination.status != RankLost.status or self._lost_seconds > GRACE_SECONDS:
            self.process.end(termination)


@contextlib.contextmanager
def watch_signals(ranks: Ranks, console: Sink) -> Iterator[SignalWatch]:
    """Watch signals, launchers and other ranks within the block; all ranks must enter it together.

    Raises RankLost in place of the error of a collective whose other side is gone.
    """
    watch = SignalWatch(ranks, console)
    try:
        yield watch
    except Exception as error:
        watch.raise_if_lost(error)
        raise
    finally:
        watch.close()


def _launchers() -> list[psutil.Process]:
    """The processes whose end ends this one: torchrun's agent, or DeepSpeed's launcher and the runner above it. A plain
    `python main.py` may outlive its shell."""
    with contextlib.suppress(psutil.Error):
        parents = psutil.Process().parents()[:2]
        if "TORCHELASTIC_RUN_ID" in os.environ:
            return parents[:1]
        if parents and "deepspeed.launcher.launch" in parents[0].cmdline():
            runner = [parent for parent in parents[1:] if any("deepspeed" in part for part in parent.cmdline())]
            return parents[:1] + runner
    return []


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
