"""torch.compile: whether it works here, what is compiled, and a cache for it that a killed process does not spoil.

A compiler that is killed leaves half a library under its final name, and torch would load that at every later start. So
a process leaves a note in the cache while it compiles, with a lock that ends with it: a note that nobody holds is that
of a killed one, and the cache begins anew.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from engine.device import deepspeed_engine
from engine.device.ranks import Ranks
from engine.errors import PresetError
from engine.screen.console import Console

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
NOTE = "compiling-"


class Compiling:
    """From here to `done` this process compiles, into a cache of this user's. All ranks must make one together."""

    def __init__(self, ranks: Ranks):
        self._before = os.environ.get(VARIABLE)
        folder = Path(self._before) if self._before else _usual_folder()
        if folder is None or not _is_ours(folder) or not _sweep(folder):
            folder = Path(tempfile.mkdtemp(prefix="forethought-compiled-"))
        ranks.gather_json(None)  # nobody writes there before everybody has looked
        try:
            self._leave_note(folder)
        except OSError:  # a disk without room or without locks
            folder = Path(tempfile.mkdtemp(prefix="forethought-compiled-"))
            with contextlib.suppress(OSError):  # nobody else comes there
                self._leave_note(folder)
        os.environ[VARIABLE] = str(folder)

    def _leave_note(self, folder: Path) -> None:
        descriptor, self._note = tempfile.mkstemp(prefix=NOTE, dir=folder)
        self._held = os.fdopen(descriptor)
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def done(self) -> None:
        """All is compiled; may be called again and again."""
        if not self._held.closed:
            Path(self._note).unlink(missing_ok=True)
            self._held.close()

    def close(self) -> None:
        """Undoes what was set. Where not `done`, the note stays behind: something may be half compiled."""
        self._held.close()
        if self._before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = self._before


def choose_compile(asked: str | bool, zero_stage: int, ranks: Ranks, console: Console) -> Compiling | None:
    """Whether to compile the model, the same on every rank; `asked` is train.compile.

    Raises PresetError where it is asked for without an "auto" and does not work.
    """
    if asked is False:
        return None
    if zero_stage == 3:  # which fetches a layer's weights while a graph is running: torch finds them empty
        if asked is True:
            raise PresetError('train.compile is true, which does not go with train.zero_stage 3; set it to "auto".')
        console.say("ZeRO-3 is not compiled: training uncompiled.")
        return None
    problems = [problem for problem in ranks.gather_json(_no_room()) if problem]
    if not problems:
        compiling = Compiling(ranks)
        problems = [problem for problem in ranks.gather_json(compiler_problem(ranks.device)) if problem]
        if not problems:
            console.say("Compiling the model; the first step takes a while.")
            return compiling
        compiling.done()
        compiling.close()
    if asked is True:
        raise PresetError(f'train.compile is true but torch.compile fails here ({problems[0]}); set it to "auto".')
    console.say(f"torch.compile is not available here ({problems[0]}): training uncompiled.")
    return None


def compile_model(engine: deepspeed.DeepSpeedEngine, **options: Any) -> int:
    """Compiles the engine's model; on a CPU without the latent core, whose minutes of compiling would win 2% of a step.

    Its forward alone: engine.compile() takes DeepSpeed's hooks along, which are compiled once for each pass of a step.
    `options` are torch.compile's. One process on a GPU has a pass in CUDA graphs: the host cannot launch the kernels of
    a short pass as fast as they run. Returns the number of passes of one kind until all is compiled and recorded.
    """
    module = engine.module
    core = getattr(module, "latent", None)
    if core is not None and engine.device.type == "cpu":
        core.forward = torch.compiler.disable(core.forward)
    alone = dist.get_world_size() == 1 and engine.zero_optimization_stage() == 0
    captured = alone and engine.device.type == "cuda"
    if captured:
        deepspeed_engine.keep_gradients(engine)  # a graph's own are overwritten when it runs again
        options.setdefault("mode", "reduce-overhead")
    compiled = torch.compile(module.forward, **options)

    def forward(*arguments: Any, **named: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # nobody reads what the last pass returned any more
        return compiled(*arguments, **named)

    module.forward = forward if captured else compiled
    return 3 if captured else 1  # one warms up, one is recorded, the next ones are replayed


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile cannot be used here, or None. Compiles a small function, since only that tells for certain."""

    def tiny(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu().sum()

    try:
        # A shape of its own keeps this out of the way of the model's compilation.
        torch.compile(tiny)(torch.ones(7, 11, device=device))
    except Exception as error:  # whatever goes wrong in a foreign compiler, training goes on without it
        reason = str(error).strip().splitlines()
        return reason[0][:160] if reason else type(error).__name__
    finally:
        torch._dynamo.reset()
    return None


def _no_room() -> str | None:
    """Why nothing can be written where compilers work, or None."""
    try:
        with tempfile.TemporaryDirectory(prefix="forethought-"):
            return None
    except OSError as error:
        return str(error)


def _usual_folder() -> Path | None:
    """None for a user who has no home, as in some containers."""
    try:
        return Path.home() / ".cache" / "forethought" / "compiled"
    except RuntimeError:
        return None


def _is_ours(folder: Path) -> bool:
    """Whether `folder`, which is made where it is missing, is one that nobody else can put code into."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not others_may_write


def _sweep(folder: Path) -> bool:
    """Begins the cache anew where a process was killed while it compiled; False where one was, and another is
    compiling there now."""
    abandoned = in_use = False
    for note in folder.glob(f"{NOTE}*"):
        try:
            with note.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                abandoned = True
        except FileNotFoundError:  # another rank has swept
            continue
        except OSError:
            in_use = True
    if abandoned and not in_use:
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return not (abandoned and in_use)
