"""The ranks of a run, and the small agreements between them.

The processes started by `python`, `torchrun` and `deepspeed` alike become one `Ranks`. Besides the device's process
group there is always a gloo group on the CPU: once a step the ranks agree on "stop?", "save?", "any data left?", which
must never synchronize with the device.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from engine.device.host import processes_here
from engine.errors import RankLost, RunError, first_line

# A person may think about the menu, and a first shard may be slow, for longer than the usual ten minutes.
TIMEOUT = timedelta(hours=1)
JOIN_TIMEOUT = timedelta(minutes=10)  # machines need not start at the same moment
JOIN_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Agreement:
    """What one rank reports before a step, or the sum of all reports."""

    labels: int = 0  # tokens of this step that are labels
    waiting: int = 0  # ranks whose next batch is not ready yet
    lost: int = 0  # ranks that cannot read a source any more
    interrupt: int = 0  # ranks that received SIGINT
    terminate: int = 0  # ranks that received SIGTERM
    hang_up: int = 0  # ranks that received SIGHUP
    events: int = 0  # source events that rank 0 has yet to log
    report: int = 0  # rank 0's clock: a step event is due
    moved: int = 0  # rank 0: the checkpoint folder is not in its place
    save: int = 0  # rank 0's clock: a checkpoint is due
    long_step: int = 0  # rank 0's clock: the last step took so long that a signal should not wait for the next

    @property
    def signalled(self) -> bool:
        """Whether any rank received a signal."""
        return bool(self.interrupt or self.terminate or self.hang_up)

    @property
    def stops(self) -> bool:
        """Whether the run must save and end before the next step."""
        return self.signalled or bool(self.moved)


@dataclass(frozen=True)
class Ranks:
    """This process's place in the run. Every method from `agree` on is collective: all ranks must call it."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None  # gloo; None only where nothing is exchanged (a world of one in tests)
    hosts: tuple[str, ...] = ()  # each rank's machine, by name; empty where all ranks are on one

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_deputy(self) -> bool:
        """Whether this rank speaks where rank 0 is lost: rank 1, and the first rank of every other machine."""
        return self.rank == 1 or (self.rank > 0 and bool(self.hosts) and int(os.environ.get("LOCAL_RANK", "0")) == 0)

    def place(self, rank: int) -> str:
        """Return a rank's number for a sentence: "3", or "3 on HOST" where there are several machines."""
        return f"{rank} on {self.hosts[rank]}" if self.hosts else str(rank)

    def agree(self, mine: Agreement) -> Agreement:
        """Return the sum of all ranks' reports."""
        return Agreement(*self.sum_tensor(torch.tensor(astuple(mine), dtype=torch.int64)).tolist())

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Run `work` on rank 0 and return its value on every rank.

        A RunError of rank 0 is raised on every rank, so that no rank waits for one that is gone.
        """
        outcome = None
        if self.is_main:
            try:
                outcome = work()
            except RunError as error:
                outcome = error
        outcome = self.broadcast(outcome)
        if isinstance(outcome, RunError):
            raise outcome
        return outcome

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        message = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(message, src=0, group=self.control)
        return message[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, on every rank."""
        gathered = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def broadcast_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Overwrite a CPU tensor with rank 0's; shapes and dtypes are the same everywhere."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0, group=self.control)
        return tensor

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a CPU tensor over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.control)
        return tensor


def local_device() -> torch.device:
    """Return the GPU of this process's local rank where there are GPUs, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join() -> Ranks:
    """Join the launcher's process group, or make a world of one for a plain `python main.py`."""
    if "RANK" not in os.environ:
        # Of port 0 the system makes a free one.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    several_hosts = int(os.environ["WORLD_SIZE"]) > processes_here()
    if several_hosts:
        _use_the_network_of_rank_0()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        several_gpus = device.type == "cuda" and int(os.environ["WORLD_SIZE"]) > 1
        place: dict[str, Any] = {}
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if world_size > 1:
            place = {"store": _meet_all(rank, world_size), "rank": rank, "world_size": world_size}
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=device if several_gpus else None, **place)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    assert isinstance(control, dist.ProcessGroup)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device, control)
    hosts = tuple(ranks.gather(socket.gethostname())) if several_hosts else ()
    # Without a launcher nobody says how many ranks are here.
    one_host = len(set(hosts)) == 1 and not {"LOCAL_WORLD_SIZE", "LOCAL_SIZE"} & os.environ.keys()
    return replace(ranks, hosts=() if one_host else hosts)


def _meet_all(rank: int, world_size: int) -> dist.Store:
    """Return a store for this attempt's ranks alone, once all are there. Raises RankLost after JOIN_TIMEOUT: making the
    process group would wait for a rank that never comes for as long as a collective may take. At a terminal rank 0 may
    be asking a person before it comes, and there the others do wait so long.

    torchrun's agents keep their store over restarts, with the addresses of ranks that are gone, and count attempts each
    for itself (pytorch issue 135712). So each rank shows a token of its own, and rank 0 offers a name for the attempt
    together with the tokens that it has seen, until all ranks have found their own.
    """
    timeout = TIMEOUT if rank > 0 and os.isatty(0) else JOIN_TIMEOUT
    deadline, token = time.monotonic() + timeout.total_seconds(), secrets.token_hex(8)
    offered: dict[str, Any] = {}
    why = ""
    try:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        keys = [f"join/token/{other}" for other in range(world_size)]
        store.set(keys[rank], token)
        while time.monotonic() < deadline:
            if rank == 0 and store.check(keys):
                tokens = [store.get(key).decode() for key in keys]
                if tokens != offered.get("tokens"):
                    offered = {"name": secrets.token_hex(8), "tokens": tokens}
                    store.set("join/offer", json.dumps(offered))
            if store.check(["join/offer"]):
                offer = json.loads(store.get("join/offer"))
                if offer["tokens"][rank : rank + 1] == [token]:
                    own = dist.PrefixStore(f"attempt-{offer['name']}", store)
                    own.set(f"join/{rank}", "here")
                    if own.check([f"join/{other}" for other in range(world_size)]):
                        store.set_timeout(TIMEOUT)
                        return own
            time.sleep(JOIN_POLL_SECONDS)
    except RuntimeError as error:  # rank 0's machine, or the agent there, is not reached, or its port is taken
        why = f" ({first_line(error)})"
    raise RankLost(
        f"Not all {world_size} ranks have met at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}{why}. Start "
        f"them within {timeout.total_seconds() / 60:.0f} minutes, where all their machines reach this address."
    )


def _use_the_network_of_rank_0() -> None:
    """Give gloo the interface that leads to rank 0, unless GLOO_SOCKET_IFNAME is set: it would take the one that this
    machine's name stands for, which is often the loopback."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with contextlib.suppress(OSError):  # a name that is not known will be reported where the ranks join
        family, *_, address = socket.getaddrinfo(os.environ["MASTER_ADDR"], 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # which sends nothing
            own = probe.getsockname()[0]
        for interface, addresses in psutil.net_if_addrs().items():
            if interface != "lo" and own in {one.address for one in addresses}:
                os.environ["GLOO_SOCKET_IFNAME"] = interface


def leave() -> None:
    """Leave the process group, so that the process ends without a warning."""
    if dist.is_initialized():
        dist.destroy_process_group()
