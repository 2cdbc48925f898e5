"""train(): holds the checkpoint folder, watches signals, and restarts a run that diverged from its last checkpoint."""

import gc
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from engine.checkpoint.folder import CheckpointFolder
from engine.config import TOKENS_PER_RUN, Preset
from engine.control.signals import SignalWatch, watch_signals
from engine.device.determinism import deterministic
from engine.device.memory import is_out_of_memory, manual_gc, too_large
from engine.device.ranks import Ranks, join
from engine.errors import Diverged, RowsChanged, RunError
from engine.events import EventLog
from engine.run.setup import batch_shape, setup
from engine.run.state import TrainResult
from engine.run.trainer import Trainer
from engine.run_log import library_log
from engine.screen import report
from engine.screen.console import Console
from engine.trackers import Trackers
from model.products.linear import by_kernel

MAX_ROLLBACKS = 3  # in a row, without a new checkpoint; as many generations are kept


def train(
    preset: Preset,
    *,
    token_budget: int = TOKENS_PER_RUN,
    checkpoint_dir: str | Path = "checkpoints",
    ranks: Ranks | None = None,
    may_archive: Callable[[str], bool] = lambda sentence: False,
    watch: SignalWatch | None = None,
) -> TrainResult:
    """Train one run, continuing whatever `checkpoint_dir` holds, and return its result.

    Raises a RunError (engine/errors.py) with the exit status for whatever ends the run early; a signal saves first, but
    ends the process at once until the first step is done. `watch` is given where signals are watched already.
    `may_archive` is asked whether a lineage that does not fit the preset may be moved away.
    """
    ranks = ranks or join()
    console = Console(enabled=ranks.is_main)
    folder = CheckpointFolder(checkpoint_dir)
    names = preset.train.log_to if ranks.is_main else ()
    trackers = Trackers(names, lambda: folder.hold.root, console.say, console.warn)
    listeners = [report.listener(lambda: folder.hold.root, folder.folder, console), trackers.take]
    log = EventLog(folder.folder, console, ranks.is_main, listeners)
    diverged, rollbacks = None, 0
    # What multiplies matrices is set up with a run, and ends with it.
    with ExitStack() as stack, deterministic(preset.train.deterministic), by_kernel(False):
        watch = watch or stack.enter_context(watch_signals(ranks, console))
        ranks.on_main(lambda: stack.enter_context(folder.held(log.warn)))
        libraries = stack.enter_context(
            library_log(lambda: folder.hold.root, ranks.rank, lambda: ranks.broadcast(None))
        )
        stack.enter_context(console.live(folder.folder, libraries, preset.name))
        stack.enter_context(closing(trackers))
        stack.enter_context(closing(log))
        stack.enter_context(log.ending())
        may_archive = console.asking(may_archive)
        while True:
            try:
                return _attempt(preset, token_budget, folder, ranks, log, may_archive, watch, diverged)
            except Diverged as error:
                rollbacks = 1 if error.saved else rollbacks + 1
                if preset.train.on_divergence == "stop" or rollbacks > MAX_ROLLBACKS:
                    raise
                diverged = error.with_traceback(None)  # whose frames would keep the old engine alive
            except RowsChanged as change:
                diverged, rollbacks = None, 0
                log.say(str(change))
            gc.collect()  # two engines need more memory than there may be
            watch.restart()
            if rollbacks > 1:  # the newest generation has been tried
                ranks.on_main(lambda: folder.step_back(1))


def _attempt(
    preset: Preset,
    token_budget: int,
    folder: CheckpointFolder,
    ranks: Ranks,
    log: EventLog,
    may_archive: Callable[[str], bool],
    watch: SignalWatch,
    diverged: Diverged | None,
) -> TrainResult:
    """Train from the newest checkpoint to the end of the run; `diverged` is how the attempt before ended, if any."""
    shape = batch_shape(preset, ranks)
    try:
        components = setup(preset, token_budget, folder, ranks, log, may_archive, diverged)
        shape = components.shape
        with closing(components), manual_gc():
            trainer = Trainer(components, watch)
            try:
                return trainer.train()
            except RunError:
                raise
            except Exception as error:
                error.add_note(trainer.rescue())
                raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise too_large(shape, ranks.device, preset.train.probe_batch) from None
        raise
