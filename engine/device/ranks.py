"""Who takes part in a run, and the small agreements between them.

The processes started by `python`, `torchrun` and `deepspeed` alike become one `Ranks`. Besides the device's process
group there is always a gloo group on the CPU: the ranks agree on "stop?", "save?", "any data left?" once a step, and
that must never synchronise with the device.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, NoReturn

import deepspeed
import torch
import torch.distributed as dist

from engine.errors import RunError
from sources.loading.prefetch import READER

# A person may think about the menu, and a first shard may be slow, for longer than the usual ten minutes.
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Agreement:
    """What one rank says before a step, or, summed over all ranks, what all of them know."""

    labels: int = 0  # tokens of this step that are labels
    waiting: int = 0  # ranks whose next batch is not ready yet
    lost: int = 0  # ranks for which a source cannot be read any more
    interrupt: int = 0  # ranks that have received SIGINT
    terminate: int = 0  # ranks that have received SIGTERM
    hang_up: int = 0  # ranks that have received SIGHUP
    events: int = 0  # events that rank 0 should hear of
    report: int = 0  # rank 0 wants to print
    save: int = 0  # rank 0's clock says that a snapshot is due
    long_step: int = 0  # by rank 0's clock the last step took so long that a signal should not wait for the next

    @property
    def signalled(self) -> bool:
        """Whether any rank has received a signal."""
        return bool(self.interrupt or self.terminate or self.hang_up)


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def agree(self, mine: Agreement) -> Agreement:
        """The sum over all ranks of what each one says."""
        if self.world_size == 1:
            return mine
        values = torch.tensor([getattr(mine, field.name) for field in fields(Agreement)], dtype=torch.int64)
        dist.all_reduce(values, group=self.control)
        return Agreement(*values.tolist())

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Runs `work` on rank 0 alone and returns its JSON value on every rank.

        A RunError of rank 0 is raised on every rank, with its status, so that none waits for one that has left.
        """
        answer = None
        if self.is_main:
            try:
                answer = {"value": work()}
            except RunError as error:
                if self.world_size == 1:
                    raise
                answer = {"error": str(error), "status": error.status}
        answer = self.broadcast_json(answer)
        if "error" in answer:
            error = RunError(answer["error"])
            error.status = answer["status"]
            raise error
        return answer["value"]

    def broadcast_json(self, value: Any) -> Any:
        """Rank 0's value on every rank, carried as one JSON string."""
        if self.world_size == 1:
            return value
        message = [json.dumps(value) if self.is_main else None]
        dist.broadcast_object_list(message, src=0, group=self.control)
        assert message[0] is not None
        return json.loads(message[0])

    def gather_json(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, json.dumps(value), group=self.control)
        return [json.loads(text) for text in gathered]

    def broadcast_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's CPU tensor, in place, on every rank; shapes and dtypes are the same everywhere."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0, group=self.control)
        return tensor

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a CPU tensor, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.control)
        return tensor


def local_device() -> torch.device:
    """The device of this process: the GPU of its local rank where there are GPUs, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join() -> Ranks:
    """Joins the process group of the launcher, or makes a world of one for a plain `python main.py`."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # On CPU DeepSpeed would compile a shared-memory operator here, and raise where no compiler is; gloo needs none.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            timeout=TIMEOUT,
            verbose=False,
        )
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size(), device, control)


def leave() -> None:
    """Leaves the process group, so that the process ends without a warning."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end(status: int) -> NoReturn:
    """Ends the process. A thread that still waits for a network is not waited for: it may be deep inside a library that
    does not survive the interpreter's own ending, and everything that matters is written by now."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk or a closed pipe: the interpreter would try again, and leave with its own status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if any(thread.daemon and thread.is_alive() and thread.name == READER for thread in threading.enumerate()):
        os._exit(status)
    raise SystemExit(status)
