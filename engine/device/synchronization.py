"""A debug mode: an operation that makes the host wait for the device in a micro-batch ends the run, naming its place.

A micro-batch only queues work. Reading a value waits until all of it is done, and the device then idles until more is
queued. CUDA reports this itself. On a CPU, where nothing waits, the operators that would are intercepted: those that
return values, or sizes that depend on values, to the host. A compiled model runs uncompiled then.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PROJECT = Path(__file__).parents[2]
# The first is what item(), float() and a tensor as a condition do.
SYNCHRONIZING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")


class Synchronization(RuntimeError):
    """Something waits for the device; the message names it and the innermost line of this project."""


@contextlib.contextmanager
def forbidden(device: torch.device) -> Iterator[None]:
    """Raises Synchronization for what waits for `device` in the block."""
    if device.type == "cpu":
        with _Interceptor():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        place = _place(traceback.extract_tb(error.__traceback__))
        raise Synchronization(f"A CUDA call waits for the device{place}.") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _Interceptor(TorchDispatchMode):
    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = operator.overloadpacket.__name__
        # The host must know how many elements a mask selects.
        by_mask = name == "index" and any(index is not None and index.dtype is torch.bool for index in args[1])
        if name in SYNCHRONIZING or by_mask:
            raise Synchronization(f"{operator} waits for the device{_place(traceback.extract_stack())}.")
        return operator(*args, **kwargs or {})


def _place(frames: traceback.StackSummary) -> str:
    ours = [frame for frame in frames if PROJECT in Path(frame.filename).parents and frame.filename != __file__]
    return f", called at {Path(ours[-1].filename).relative_to(PROJECT)}:{ours[-1].lineno}" if ours else ""
