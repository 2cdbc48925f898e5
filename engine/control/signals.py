"""What ends a run from outside: SIGINT, SIGTERM and SIGHUP, a launcher that dies, a rank that is lost.

Until the first optimizer step is done there is nothing to lose, and a signal ends all ranks at once. From then on it is
a wish: the loop agrees on it, saves and leaves; a second one, unless it is an echo of the first, leaves at once. A
thread watches, since a handler does not run while the main thread compiles, computes or waits in C++.
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
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import psutil
import torch.distributed as dist

from engine.control.health import SOMEBODY_LOST, TELL_SECONDS, Ending, Peers
from engine.device.ranks import Ranks
from engine.errors import Interrupted, RankLost
from engine.screen.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last is a terminal that closes
# Whoever starts a process may repeat a signal within a moment, which is no second wish: `timeout` sends it to the
# process and to its group, wrappers hand a Ctrl-C on that the process has had, DeepSpeed's launcher sends SIGINT and
# then SIGTERM.
ECHO_SECONDS, LAUNCHERS_ECHO_SECONDS = 0.5, 3.0
TICK_SECONDS = 0.5
GRACE_SECONDS = 15.0  # for the main thread to end by itself when a rank is lost
PRINT_SECONDS = 1.0  # for whoever reads the output

T = TypeVar("T")


class Abandoned(BaseException):
    """A step or an evaluation is given up because of a signal. No Exception: nobody on the way may take it for one of
    their own."""


class Watch:
    """See the module's docstring. `signal_number` is the signal that asked this process to stop, once it came."""

    def __init__(self, ranks: Ranks, console: Console):
        self.signal_number: int | None = None
        self._ranks, self._console = ranks, console
        self._asked_at: float | None = None
        self._where: Callable[[], str] | None = None
        self._interruptible = False
        self._peers: Peers | None = None
        self._lost_for = 0.0  # seconds
        self._launchers = _launchers()
        self._echo_seconds = LAUNCHERS_ECHO_SECONDS if self._launchers or ranks.world_size > 1 else ECHO_SECONDS
        self._ending = threading.Lock()  # two threads may know why at once, and one sentence is enough
        self._bell, self._ringer = socket.socketpair()  # the interpreter writes each signal's number here at once
        self._ringer.setblocking(False)
        self._before = self._take_signals()
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()

    def meet_peers(self) -> None:
        """All ranks must call it together."""
        if self._ranks.world_size > 1:
            self._peers = Peers(self._ranks)

    def training(self, where: Callable[[], str]) -> None:
        """From now on there is something to lose; `where` says how far the run is ("at step 12")."""
        self._where = where

    def beginning_anew(self) -> None:
        """Nothing is trained that is not on the disk: a signal ends all at once again, also one that came before."""
        self._where = None
        if self.signal_number is not None:
            self._end_all(Ending(signal.Signals(self.signal_number).name, 128 + self.signal_number))

    def abandonable(self, passes: Iterable[T], stopping: Callable[[], bool], interruptible: bool) -> Iterator[T]:
        """Hands on `passes`; raises Abandoned before one when the ranks are `stopping`, which is asked on all of them.
        In a world of one that is `interruptible`, a signal raises it at once, within a pass."""
        self._interruptible = interruptible and self._ranks.world_size == 1
        try:
            for one in passes:
                if stopping():
                    raise Abandoned
                yield one
        finally:
            self._interruptible = False

    def explain(self, error: Exception) -> Exception:
        """What the user should hear of an error that ends this rank. The others hear of it too, if they wait."""
        if self._ranks.world_size == 1 or isinstance(error, Interrupted):
            return error
        if not _is_broken_connection(error):
            if self._peers is not None:
                first_line = (str(error).splitlines() or [type(error).__name__])[0]
                self._peers.tell(Ending(f"Rank {self._ranks.rank} has ended ({first_line})", RankLost.status))
            return error
        ending = self._peers.find_lost() if self._peers is not None else SOMEBODY_LOST
        self._choose_speaker(ending)
        if ending.status != RankLost.status:
            self._end(ending)  # not lost: a signal ended it, and this rank hears of it now
        return RankLost(self._sentence(ending))

    def close(self) -> None:
        """Undoes everything: handlers, threads, connections."""
        if self._asked_at is not None:  # an echo that met the old handlers would kill a process that has saved
            time.sleep(max(0.0, self._asked_at + ECHO_SECONDS - time.monotonic()))
        if self._peers is not None:
            self._peers.leave()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
        self._ringer.close()  # ends the thread
        self._thread.join()
        self._bell.close()

    def _take_signals(self) -> dict[int, Any]:
        """The handlers before; none where this is not the main thread, which alone may set any."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        self._wakeup_before = signal.set_wakeup_fd(self._ringer.fileno(), warn_on_full_buffer=False)
        hung_up_is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
        taken = SIGNALS[:-1] if hung_up_is_ignored else SIGNALS
        return {number: signal.signal(number, self._handle) for number in taken}

    def _handle(self, number: int, _frame: Any) -> None:
        """In the main thread, once it is back in Python."""
        self.signal_number = self.signal_number or number
        if self._interruptible:
            self._interruptible = False
            raise Abandoned

    # The thread

    def _run(self) -> None:
        while True:
            if select.select([self._bell], [], [], TICK_SECONDS)[0]:
                numbers = self._bell.recv(64)
                if not numbers:
                    return
                for number in numbers:
                    if number in SIGNALS:
                        self._hear(number)
            elif self._asked_at is None and any(_is_gone(process) for process in self._launchers):
                self._ask_to_stop()
            if self._peers is not None:
                self._look_around()

    def _hear(self, number: int) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        if self._where is None:
            self._end_all(Ending(name, 128 + number))
        if self._asked_at is None:
            self._asked_at, self.signal_number = now, self.signal_number or number
        elif now - self._asked_at > self._echo_seconds:
            self._end_all(Ending(f"{name} again", 128 + number))

    def _ask_to_stop(self) -> None:
        """The launcher is gone, and this process must not outlive it for long."""
        if self._before:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._hear(signal.SIGTERM)

    def _look_around(self) -> None:
        self._peers.check_host(TICK_SECONDS)
        ending = self._peers.ending
        if ending is None:
            return
        self._lost_for += TICK_SECONDS
        # Of a lost rank the main thread usually hears as well, and then ends in order.
        if ending.status != RankLost.status or self._lost_for > GRACE_SECONDS:
            self._choose_speaker(ending)
            self._end(ending)

    def _end_all(self, ending: Ending) -> NoReturn:
        if self._peers is not None:
            self._peers.tell(ending)
        self._end(ending)

    def _end(self, ending: Ending) -> NoReturn:
        """Ends this process and all that it started, whatever the main thread is at."""
        self._ending.acquire()  # never released
        speaker = threading.Thread(target=self._speak, args=(self._sentence(ending),), daemon=True)
        speaker.start()
        speaker.join(PRINT_SECONDS)
        if self._peers is not None and self._ranks.is_main:
            time.sleep(TELL_SECONDS / 2)  # the store may be this process's, and the others must hear of it
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(ending.status)

    def _speak(self, sentence: str) -> None:
        with contextlib.suppress(OSError):
            self._console.error(sentence)
            sys.stdout.flush()

    def _sentence(self, ending: Ending) -> str:
        if self._where is None:
            return f"{ending.cause} before the first step; there was nothing to save."
        return f"{ending.cause} {self._where()}; the next start goes on from the last snapshot."

    def _choose_speaker(self, ending: Ending) -> None:
        """Rank 0 speaks for all, and rank 1 where rank 0 is lost."""
        if ending.lost == 0 and self._ranks.rank == 1:
            self._console.enabled = True


@contextmanager
def watch(ranks: Ranks, console: Console) -> Iterator[Watch]:
    """Signals, launchers and other ranks are watched within it; all ranks must enter it together.

    Raises RankLost in place of the error of a collective whose other side is gone.
    """
    watching = Watch(ranks, console)
    try:
        watching.meet_peers()
        yield watching
    except Exception as error:
        told = watching.explain(error)
        if told is error:
            raise
        raise told from None
    finally:
        watching.close()


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


def _is_broken_connection(error: Exception) -> bool:
    """Whether a collective failed because its other side is gone, or did not come in time."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))
