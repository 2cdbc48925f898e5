"""Hosts made of network namespaces: each has an address, a name, a folder and a link of its own.

The folders of all hosts are seen under one path, as the same checkout would be on several machines, or are one and the
same (`shared`). A link can be cut, delayed or made to lose packets; the kernel does that where it has netem, otherwise
frames travel through this process. Needs root and iproute2; `problem()` says what is missing.
"""

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import random
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

from tests.helpers.processes import Process, environment, start
from tests.helpers.text import REPOSITORY

NETNS, UTS, MOUNT = 0x40000000, 0x04000000, 0x00020000  # of clone(2)
PORT = 29611
NAMES = "alpha", "beta", "gamma"
MAIN = str(REPOSITORY / "main.py")

# A program that is forked by tests.helpers.processes moves into a host by itself before it begins.
FORKED = """
import ctypes, os, runpy, socket, sys
library = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result:
        raise OSError(ctypes.get_errno(), "cannot move into the host")
check(library.setns(os.open({namespace!r}, os.O_RDONLY), {net}))
check(library.unshare({uts} | {mount}))
socket.sethostname({name!r})
check(library.mount(None, b"/", None, 0x44000, None))  # private and recursive
check(library.mount({hosts_file!r}.encode(), b"/etc/hosts", None, 0x1000, None))
check(library.mount({folder!r}.encode(), {path!r}.encode(), None, 0x1000, None))
os.chdir({path!r})
{program}
"""
MAIN_PROGRAM = f'sys.argv = ["main.py"]\nrunpy.run_path({MAIN!r}, run_name="__main__")'

# In place of health.LOST_SECONDS and signals.GRACE_SECONDS.
IMPATIENCE, GRACE = 4.0, 2.0
IMPATIENT = f"""
from engine.control import health, signals
health.LOST_SECONDS, signals.GRACE_SECONDS = {IMPATIENCE}, {GRACE}
"""

T = TypeVar("T")


@functools.cache
def problem() -> str | None:
    """Why hosts cannot be made here, or None."""
    if missing := [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]:
        return f"needs {', '.join(missing)} (Debian's iproute2 and util-linux)"
    name = f"forethought-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"needs root: {made.stderr.strip()}"
    tries = {
        "unshare names and mounts": ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "true"],
        "make a pair of interfaces": [
            "ip",
            "-n",
            name,
            "link",
            "add",
            "probe0",
            "type",
            "veth",
            "peer",
            "name",
            "probe1",
        ],
        "make a bridge": ["ip", "-n", name, "link", "add", "probe2", "type", "bridge"],
    }
    failed = [what for what, command in tries.items() if subprocess.run(command, capture_output=True).returncode]
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return f"this system cannot {failed[0]}" if failed else None


class Host:
    """One machine: `folder` is its own working folder as seen from outside, `address` its IP address."""

    def __init__(self, number: int, network: "Network"):
        self.name, self.address = NAMES[number], f"10.77.0.{number + 1}"
        self.namespace, self.network = f"{network.prefix}{number}", network
        self.folder = network.root / ("shared" if network.shared else self.name)
        self.folder.mkdir(exist_ok=True)

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Start a program as this machine's user would, in its folder; stdout and stderr are one stream of text."""
        return subprocess.Popen(
            [*self.entering(), *command],
            env=environment(**self._variables(), **variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def entering(self) -> list[str]:
        """The beginning of a command that moves into this host."""
        inside = (
            f"echo {self.name} > /proc/sys/kernel/hostname; mount --bind {self.network.root}/hosts /etc/hosts; "
            f'mount --bind {self.folder} {self.network.path}; cd {self.network.path}; exec "$@"'
        )
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", inside, "-"]

    def fork(self, program: str = MAIN_PROGRAM, **variables: str) -> Process:
        """The same for a Python program, without the seconds that its imports take."""
        text = FORKED.format(
            namespace=f"/run/netns/{self.namespace}",
            net=NETNS,
            uts=UTS,
            mount=MOUNT,
            name=self.name,
            hosts_file=str(self.network.root / "hosts"),
            folder=str(self.folder),
            path=str(self.network.path),
            program=program,
        )
        return start(text, cwd=self.network.root, variables={**self._variables(), **variables})

    def processes(self) -> list[psutil.Process]:
        """All that run on this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        found = []
        for pid in listed.stdout.split():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(int(pid))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def signal(self, number: int) -> None:
        """To all processes at once, as a machine that stops, goes on or is switched off."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def cut(self) -> None:
        """The cable is pulled: nothing is answered, not even refused."""
        self.network.cut(self, True)

    def mend(self) -> None:
        self.network.cut(self, False)

    def switch_off(self) -> None:
        """The machine is gone: its processes say goodbye to nobody."""
        self.cut()
        self.signal(signal.SIGKILL)

    def sent_bytes(self) -> int:
        """What this host's interface has sent, with all headers."""
        (link,) = json.loads(_run("ip", "-n", self.namespace, "-s", "-j", "link", "show", "eth0"))
        return link["stats64"]["tx"]["bytes"]

    def _variables(self) -> dict[str, str]:
        home = self.folder / f"home-{self.name}"
        home.mkdir(exist_ok=True)
        return {"HOME": str(home)}


class Network:
    """`with Network(folder, 2) as network:` has `network.hosts`, one link each, and `network.path`, where every host
    sees its folder. `delay` (seconds, one way) and `loss` (share of packets) hold for each link."""

    def __init__(self, root: Path, hosts: int = 2, shared: bool = False, delay: float = 0.0, loss: float = 0.0):
        self.root, self.shared, self.delay, self.loss = root, shared, delay, loss
        self.prefix = f"ft{os.getpid()}-"
        self.path = root / "work"
        self.path.mkdir()
        self.hosts = [Host(number, self) for number in range(hosts)]
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        (root / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        self._switch, self._wire = f"{self.prefix}s", None

    def __enter__(self) -> "Network":
        self._remove()
        try:
            for namespace in (self._switch, *(host.namespace for host in self.hosts)):
                _run("ip", "netns", "add", namespace)
                _run("ip", "-n", namespace, "link", "set", "lo", "up")
            slow = self.delay or self.loss
            if slow and not self._has_netem():
                self._wire = Wire(self.hosts, self.delay, self.loss)
            else:
                self._make_switch()
            for host in self.hosts:
                _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
                _run("ip", "-n", host.namespace, "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for host in self.hosts:
            host.signal(signal.SIGCONT)
            host.signal(signal.SIGKILL)
        if self._wire:
            self._wire.close()
        self._remove()

    def cut(self, host: Host, cut: bool) -> None:
        if self._wire:
            self._wire.cut(host, cut)
        else:
            _run("ip", "-n", self._switch, "link", "set", host.name, "down" if cut else "up")

    def _make_switch(self) -> None:
        _run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            peer = ("peer", "name", "eth0", "netns", host.namespace)
            _run("ip", "-n", self._switch, "link", "add", host.name, "type", "veth", *peer)
            _run("ip", "-n", self._switch, "link", "set", host.name, "master", "bridge", "up")
            if self.delay or self.loss:
                slow = ("delay", f"{self.delay * 1000:.3f}ms", "loss", f"{self.loss:.3%}")
                _run("tc", "-n", host.namespace, "qdisc", "add", "dev", "eth0", "root", "netem", *slow)

    def _has_netem(self) -> bool:
        tried = ["tc", "-n", self._switch, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        return subprocess.run(tried, capture_output=True).returncode == 0

    def _remove(self) -> None:
        for namespace in (self._switch, *(host.namespace for host in self.hosts)):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)


class Wire(threading.Thread):
    """Carries Ethernet frames between hosts, late and not all of them: for kernels without netem."""

    def __init__(self, hosts: list[Host], delay: float, loss: float):
        super().__init__(daemon=True)
        self._delay, self._loss, self._random = delay, loss, random.Random(0)
        self._taps = {host.name: _inside(host.namespace, _open_tap) for host in hosts}
        self._cut: set[str] = set()
        self._closing = False
        self.start()

    def cut(self, host: Host, cut: bool) -> None:
        (self._cut.add if cut else self._cut.discard)(host.name)

    def close(self) -> None:
        self._closing = True
        self.join()
        for tap in self._taps.values():
            os.close(tap)

    def run(self) -> None:
        names = {tap: name for name, tap in self._taps.items()}
        waiting: list[tuple[float, str, bytes]] = []  # when it arrives, where it comes from, what
        polling = select.poll()
        for tap in names:
            polling.register(tap, select.POLLIN)
        while not self._closing:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, sender, frame = waiting.pop(0)
                for name, tap in self._taps.items():
                    if name != sender and not {name, sender} & self._cut:
                        with contextlib.suppress(OSError):  # an interface that is not up yet
                            os.write(tap, frame)
            patience = max(0.0, waiting[0][0] - now) if waiting else 0.05
            for tap, _ in polling.poll(min(50.0, patience * 1000)):
                with contextlib.suppress(OSError):
                    frame = os.read(tap, 65536)
                    if self._random.random() >= self._loss:
                        waiting.append((time.monotonic() + self._delay, names[tap], frame))


def _open_tap() -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH", b"eth0", 0x0002 | 0x1000))  # TUNSETIFF; TAP without a header
    return tap


def _inside(namespace: str, work: Callable[[], T]) -> T:
    """Do `work` in a thread that has moved to a network namespace."""
    results: list[T] = []

    def move_and_work() -> None:
        with open(f"/run/netns/{namespace}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), NETNS):
                raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        results.append(work())

    thread = threading.Thread(target=move_and_work)
    thread.start()
    thread.join()
    return results[0]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


# Launchers: the command of each host.


def torchrun(
    network: Network, number: int, *options: str, nnodes: str = "", ranks: int = 2, program: tuple[str, ...] = (MAIN,)
) -> list[str]:
    """With `nnodes` as "1:2" the agents find one another at the first host, and go on when one is lost."""
    nodes = nnodes or str(len(network.hosts))
    first = network.hosts[0].address
    where = [f"--node_rank={number}", f"--master_addr={first}", f"--master_port={PORT}"]
    if nnodes:
        where = [
            "--rdzv_backend=c10d",
            f"--rdzv_endpoint={first}:{PORT}",
            f"--local_addr={network.hosts[number].address}",
        ]
    rest = [f"--nproc_per_node={ranks}", *options, *program]
    return [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", *where, *rest]


def deepspeed(network: Network, number: int, ranks: int = 2, program: tuple[str, ...] = (MAIN,)) -> list[str]:
    """Without ssh: each host starts its own ranks."""
    hostfile = network.root / "hostfile"
    hostfile.write_text("".join(f"{host.name} slots={ranks}\n" for host in network.hosts))
    where = ["--no_ssh", f"--node_rank={number}", f"--master_addr={network.hosts[0].address}", f"--master_port={PORT}"]
    return [str(Path(sys.executable).parent / "deepspeed"), f"--hostfile={hostfile}", *where, *program]


# In place of pdsh, which connects by ssh. What would end a run's processes by their names is left out: hosts share
# their process numbers with everybody on this machine.
PDSH = """#!/bin/sh
case "$*" in *pkill*) exit 0 ;; esac
while true; do
    case "$1" in
        -S) shift ;;
        -f) shift 2 ;;
        -w) hosts=$(echo "$2" | tr , " "); shift 2 ;;
        *) break ;;
    esac
done
number=0
for host in $hosts; do
    command=$(echo "$*" | sed "s/%n/$number/g")
    case $host in
{cases}
    esac
    number=$((number + 1))
done
wait
"""


def deepspeed_by_pdsh(network: Network, ranks: int = 2) -> tuple[list[str], dict[str, str]]:
    """The command for the first host alone, and the variables that it needs."""
    tools = network.root / "tools"
    tools.mkdir()
    lines = [f'{host.name}) {shlex.join(host.entering())} sh -c "$command" < /dev/null & ;;' for host in network.hosts]
    (tools / "pdsh").write_text(PDSH.format(cases="\n".join(lines)))
    (tools / "pdsh").chmod(0o755)
    command = [word for word in deepspeed(network, 0, ranks) if word != "--no_ssh" and "--node_rank" not in word]
    command.insert(1, "--no_ssh_check")
    return command, {"PATH": f"{tools}:{os.environ['PATH']}"}


def impatient(network: Network, *program: str) -> tuple[str, ...]:
    """The command line of a program whose ranks miss each other after IMPATIENCE seconds."""
    script = network.root / "impatient.py"
    script.write_text(
        f"{IMPATIENT}import runpy, sys\n"
        "sys.argv = [word for word in sys.argv[1:] if not word.startswith('--local_rank')]  # which DeepSpeed adds\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return str(script), *program


def group(network: Network, ranks: int = 1) -> Iterator[tuple[Host, dict[str, str]]]:
    """Each rank's host and environment, for starts without a launcher."""
    world = {"MASTER_ADDR": network.hosts[0].address, "MASTER_PORT": str(PORT)}
    world |= {"WORLD_SIZE": str(ranks * len(network.hosts)), "LOCAL_WORLD_SIZE": str(ranks)}
    for number, host in enumerate(network.hosts):
        for local in range(ranks):
            yield (
                host,
                world | {"RANK": str(number * ranks + local), "LOCAL_RANK": str(local), "GROUP_RANK": str(number)},
            )
