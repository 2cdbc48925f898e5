"""The ranks of a run, and the small agreements between them.

The processes started by `python`, `torchrun` and `deepspeed` alike become one `Ranks`. Besides the device's process
group there is always a gloo group on the CPU: once a step the ranks agree on "stop?", "save?", "any data left?", which
must never synchronize with the device.
"""

import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from engine.errors import RunError

# A person may think about the menu, and a first shard may be slow, for longer than the usual ten minutes.
TIMEOUT = timedelta(hours=1)


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
    """This process's place in the run. Every method but `is_main` is collective: all ranks must call it."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None  # gloo; None only where nothing is exchanged (a world of one in tests)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

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
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        several_gpus = device.type == "cuda" and int(os.environ["WORLD_SIZE"]) > 1
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=device if several_gpus else None)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    assert isinstance(control, dist.ProcessGroup)
    return Ranks(dist.get_rank(), dist.get_world_size(), device, control)


def leave() -> None:
    """Leave the process group, so that the process ends without a warning."""
    if dist.is_initialized():
        dist.destroy_process_group()
