"""What stands around the loop: the folder is held, signals are watched, a run that diverged may begin anew."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from engine.checkpoint.folder import CheckpointFolder
from engine.config import Preset
from engine.control.signals import Watch, watch
from engine.device.determinism import deterministic
from engine.device.memory import collected_between_steps, is_out_of_memory, too_large
from engine.device.ranks import Ranks, join
from engine.errors import Diverged
from engine.events import Metrics
from engine.run.resume import begin
from engine.run.trainer import Run, TrainResult
from engine.screen.console import Console

TOKENS_PER_RUN = 100_000_000
MAX_ROLLBACKS = 3  # in a row, without a new snapshot; as many generations are kept


def train(
    preset: Preset,
    *,
    token_budget: int = TOKENS_PER_RUN,
    checkpoint_dir: str | Path = "checkpoints",
    ranks: Ranks | None = None,
    may_archive: Callable[[str], bool] = lambda sentence: False,
    stop: Watch | None = None,
) -> TrainResult:
    """Trains one run, continuing whatever `checkpoint_dir` holds, and returns its result.

    Raises a RunError (engine/errors.py) with the exit status for whatever ends the run early; a signal saves first, but
    ends the process at once as long as no step is done. `stop` watches for signals already, else that is done here.
    """
    ranks = ranks or join()
    console = Console(enabled=ranks.is_main)
    folder = CheckpointFolder(checkpoint_dir)
    diverged, rollbacks = None, 0
    with ExitStack() as holding, deterministic(preset.train.deterministic):
        stop = stop or holding.enter_context(watch(ranks, console))
        ranks.on_main(lambda: holding.enter_context(folder.held(console.warn)))
        while True:
            try:
                return _attempt(preset, token_budget, folder, ranks, console, may_archive, stop, diverged)
            except Diverged as error:
                rollbacks = 1 if error.saved else rollbacks + 1
                if preset.train.on_divergence == "stop" or rollbacks > MAX_ROLLBACKS:
                    raise
                diverged = error.with_traceback(None)  # whose frames would keep the old engine
            stop.beginning_anew()
            if rollbacks > 1:  # the newest generation has been tried
                ranks.on_main(lambda: folder.step_back(1))


def _attempt(
    preset: Preset,
    token_budget: int,
    folder: CheckpointFolder,
    ranks: Ranks,
    console: Console,
    may_archive: Callable[[str], bool],
    stop: Watch,
    diverged: Diverged | None,
) -> TrainResult:
    """From the newest snapshot to the end of the run; `diverged` is how the attempt before ended, if there was one."""
    beginning = begin(preset, token_budget, folder, ranks, console, may_archive, diverged)
    metrics = Metrics(folder.folder, console, ranks.is_main)  # only now: an archived lineage took its own along
    if diverged:
        step, to_step = diverged.step, beginning.progress.step
        metrics.write("rollback", step=step, to_step=to_step, reason=diverged.what)
    tried = preset
    try:
        with (
            closing(metrics),
            closing(Run(preset, token_budget, beginning, folder, ranks, console, metrics, stop)) as run,
            collected_between_steps(),
        ):
            tried = run.preset  # with the passes that were chosen
            return run.train()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise too_large(tried, ranks) from None
        raise
