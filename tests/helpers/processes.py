"""Programs that start at once: a server imports what a run needs, and forks a process for each of them.

Importing torch, DeepSpeed and the rest takes each process three seconds. `start` gives a Process, much like Popen;
`run_ranks` runs a script as the ranks of one process group, without a launcher. What a library reads from the
environment when it is imported is the server's, but for what the hub's does: for that there is a second server, which
has not imported it.

    python -m tests.helpers.processes DESCRIPTOR MODULE...    the server; DESCRIPTOR is a connected Unix socket
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NoReturn

from tests.helpers.text import REPOSITORY

LIBRARIES = (
    "torch._dynamo",
    "torch.utils.cpp_extension",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "rich.console",
    "tiktoken",
    "tokenizers",
)
PROGRAM = ("engine.launch", "engine.screen.menu")  # all that main.py imports
REQUEST_BYTES = 1 << 20
Variables = Mapping[str, str]
NONE: Variables = {}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2")


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a program of its own, outside any process group, with `changes`."""
    values = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return values | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | changes


class Process:
    """A program that runs, with the parts of subprocess.Popen that tests need; its output is one stream of text."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str], ended: int):
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.returncode: int | None = None
        self._ended = ended  # a pipe to which the exit status is written

    def poll(self) -> int | None:
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, answer: str = "", timeout: float | None = None) -> tuple[str, None]:
        """Writes `answer`, which must fit into a pipe, and returns the output once the program has ended."""
        if not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError), self.stdin:
                self.stdin.write(answer)
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if not output:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        self.wait(timeout)
        return output[0], None

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            waiting = select.poll()  # select takes no descriptor above 1023, and torch leaves four open per run
            waiting.register(self._ended, select.POLLIN | select.POLLHUP)
            if waiting.poll(None if timeout is None else timeout * 1000):
                self.returncode = int(os.read(self._ended, 16))
                os.close(self._ended)
        return self.returncode


def start(
    script: Path | str,
    *arguments: str,
    cwd: Path,
    variables: Variables = NONE,
    stdin: int | None = None,
    stdout: int | None = None,
) -> Process:
    """Starts a script, or a program given as text, in a session of its own, with `variables` in its environment.

    `stdin` and `stdout` take the place of its pipes: a terminal, or the writing end of a pipe that programs share.
    """
    own_stdin, to_stdin = os.pipe()
    from_stdout, own_stdout = os.pipe()
    ended, to_ended = os.pipe()
    request = {
        "path": str(script) if isinstance(script, Path) else None,
        "text": None if isinstance(script, Path) else script,
        "arguments": arguments,
        "cwd": str(cwd),
        "environment": environment(**variables),
    }
    server = _server((*LIBRARIES, *(() if any(name.startswith("HF_") for name in variables) else PROGRAM)))
    streams = [own_stdin if stdin is None else stdin, own_stdout if stdout is None else stdout]
    socket.send_fds(server, [json.dumps(request).encode()], [*streams, to_ended])
    for descriptor in (own_stdin, own_stdout, to_ended):
        os.close(descriptor)
    pid = int(server.recv(16))
    return Process(pid, os.fdopen(to_stdin, "w"), os.fdopen(from_stdout, errors="replace"), ended)


def run_program(script: Path | str, *arguments: str, answer: str = "", timeout: float = 120) -> tuple[int, str]:
    """Exit status and output of a script, or a program given as text, that is given `answer` on standard input."""
    process = start(script, *arguments, cwd=REPOSITORY)
    output, _ = process.communicate(answer, timeout)
    return process.wait(), output


def start_ranks(
    script: Path | str,
    *arguments: str,
    cwd: Path,
    processes: int,
    variables: Variables = NONE,
    stdout: int | None = None,
) -> list[Process]:
    """The ranks of one process group, of which rank 0 has the store; one process makes a world of its own."""
    groups = group_of(processes)
    return [start(script, *arguments, cwd=cwd, variables={**variables, **group}, stdout=stdout) for group in groups]


def group_of(processes: int) -> list[dict[str, str]]:
    """The environment variables of each rank of a process group on this machine."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run_ranks(script: Path | str, *arguments: str, processes: int = 1, timeout: float = 300) -> str:
    """What the ranks of a script print, together; all must end with status 0."""
    read, write = os.pipe()
    ranks = start_ranks(script, *arguments, cwd=REPOSITORY, processes=processes, stdout=write)
    os.close(write)
    timer = threading.Timer(timeout, lambda: [rank.kill() for rank in ranks])
    timer.start()
    with os.fdopen(read, errors="replace") as output:
        printed = output.read()
    timer.cancel()
    assert [rank.wait(10) for rank in ranks] == [0] * processes, printed[-3000:]
    return printed


@functools.cache
def _server(modules: tuple[str, ...]) -> socket.socket:
    """The connection to this process's server that has imported these modules; it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.processes", str(theirs.fileno()), *modules],
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    atexit.register(server.wait)
    atexit.register(ours.close)  # which ends the server, and comes before
    return ours


def serve(connection: socket.socket) -> dict:
    """Forks a process for each request, in which it returns the request; ends with the connection.

    In between stands a process that waits for it and writes down its status.
    """
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not data:
            os._exit(0)
        if os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        end_with_parent()
        stdin, stdout, ended = descriptors
        pid = os.fork()
        if not pid:
            end_with_parent()
            os.setsid()
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            os.dup2(stdout, 2)
            for descriptor in descriptors:
                os.close(descriptor)
            connection.close()
            return json.loads(data)
        os.close(stdin)
        os.close(stdout)
        connection.send(str(pid).encode())
        connection.close()
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)


def end_with_parent() -> None:
    """So that nothing outlives a test session that is killed."""
    with contextlib.suppress(OSError, AttributeError):  # Linux has it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def run(request: dict) -> NoReturn:
    """Becomes the program, as far as it can see. Its end leaves out what takes a second: taking all modules apart."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["path"] or "-c", *request["arguments"]]
    try:
        if request["path"]:
            runpy.run_path(request["path"], run_name="__main__")
        else:
            exec(compile(request["text"], "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # waits for threads that are no daemons, as the interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all that was imported
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
