"""torch.compile: whether it works here, what is compiled, and a compile cache that a killed process cannot corrupt.

A killed compiler leaves half a library under its final name, and torch would load that at every later start. So a
process keeps a locked marker file in the cache while it compiles; a marker that nobody locks was left by a killed
process, and the cache is cleared.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from engine.device.deepspeed_engine import Engine, keep_gradients
from engine.device.ranks import Ranks
from engine.errors import PresetError, first_line
from engine.events import EventLog

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
MARKER = "compiling-"
TEMPORARY = "forethought-compiled-"


class CompileCache:
    """This user's compile cache, marked as in use from here to `done`. All ranks must create one together."""

    def __init__(self, ranks: Ranks):
        self._before = os.environ.get(VARIABLE)
        folder = None
        with contextlib.suppress(RuntimeError):  # a user without a home folder, as in some containers
            folder = Path(self._before or "~/.cache/forethought/compiled").expanduser()
        if folder is None or not _is_ours(folder) or not _sweep(folder):
            folder = _new_folder()
        ranks.gather(None)  # a barrier: no rank writes before every rank has swept
        self._marker: IO | None = None
        try:
            self._marker = tempfile.NamedTemporaryFile(prefix=MARKER, dir=folder, delete=False)  # noqa: SIM115
            fcntl.flock(self._marker, fcntl.LOCK_EX)
        except OSError:  # a disk without room or without locks
            folder = _new_folder()
        if folder is not None:
            os.environ[VARIABLE] = str(folder)

    def done(self) -> None:
        """Everything is compiled; may be called several times."""
        if self._marker is not None:
            Path(self._marker.name).unlink(missing_ok=True)
            self._marker.close()

    def close(self) -> None:
        """Restore the environment. Without `done` the marker stays: something may be half compiled."""
        if self._marker is not None:
            self._marker.close()
        if self._before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = self._before


def choose_compile(asked: str | bool, zero_stage: int, ranks: Ranks, log: EventLog) -> CompileCache | None:
    """Return a compile cache if the model is to be compiled, the same on every rank; `asked` is train.compile.

    Raises PresetError where it is true and does not work.
    """
    if asked is False:
        return None
    # Stage 3 fetches a layer's weights while the graph runs: torch would compile empty ones.
    problem = "ZeRO-3 is not compiled"
    if zero_stage < 3:
        cache = CompileCache(ranks)
        reason = next(filter(None, ranks.gather(compiler_problem(ranks.device))), None)
        if reason is None:
            log.say("Compiling the model; the first step takes a while.")
            return cache
        cache.done()
        cache.close()
        problem = f"torch.compile is not available here ({reason})"
    if asked is True:
        raise PresetError(f'train.compile is true but {problem}; set it to "auto".')
    log.say(f"{problem}: training uncompiled.")
    return None


def compile_model(engine: Engine, **options: Any) -> int:
    """Compile the engine's model in place and return how many equal micro-batches it takes until all is compiled.

    Only the forward: engine.compile() includes DeepSpeed's hooks, which are compiled once per micro-batch of a step. On
    a CPU the lookahead core stays uncompiled: minutes of compiling would save 2% of a step. One process on a GPU uses
    CUDA graphs: the host cannot launch a small model's kernels as fast as they run. `options` are torch.compile's.
    """
    module = engine.module
    core = getattr(module, "latent", None)
    if core is not None and engine.device.type == "cpu":
        core.forward = torch.compiler.disable(core.forward)
    if engine.device.type == "cpu" or dist.get_world_size() > 1 or engine.zero_optimization_stage() > 0:
        module.forward = torch.compile(module.forward, **options)
        return 1
    keep_gradients(engine)  # a graph's own gradients are overwritten when it is replayed
    compiled = torch.compile(module.forward, **{"mode": "reduce-overhead", **options})

    def forward(*arguments: Any, **named: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # the last micro-batch's outputs are no longer read
        return compiled(*arguments, **named)

    module.forward = forward
    return 3  # warm-up, recording, replay


def compiler_problem(device: torch.device) -> str | None:
    """Return why torch.compile cannot be used here, or None; compiles a small function to find out."""

    def tiny(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu().sum()

    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY):  # compilers make some
            # Its own shape keeps this apart from the model's compilation.
            torch.compile(tiny)(torch.ones(7, 11, device=device))
    except Exception as error:  # whatever fails in the compiler, training goes on without it
        return first_line(error)
    finally:
        torch._dynamo.reset()
    return None


def _new_folder() -> Path | None:
    """Make a cache that no other process uses; None where no temporary folder can be made, nor anything compiled."""
    with contextlib.suppress(OSError):
        return Path(tempfile.mkdtemp(prefix=TEMPORARY))
    return None


def _is_ours(folder: Path) -> bool:
    """Create `folder` if needed and return whether only this user can write code into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022  # all may write to a link


def _sweep(folder: Path) -> bool:
    """Clear the cache if a process was killed while it compiled; return False if one was and another process compiles
    there now."""
    abandoned = in_use = False
    for marker in folder.glob(f"{MARKER}*"):
        with contextlib.suppress(FileNotFoundError), marker.open() as file:  # another rank may have swept it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                abandoned = True
            except OSError:
                in_use = True
    if abandoned and not in_use:
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return not (abandoned and in_use)
