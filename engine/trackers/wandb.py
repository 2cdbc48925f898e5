"""W&B: a run on a server, or with WANDB_MODE=offline, or where nobody is logged in, in checkpoints/wandb/.

WANDB_PROJECT, WANDB_ENTITY and the other variables of W&B count as ever.
"""

import html
import os

from engine.trackers.records import Record
from engine.trackers.tracker import Identity, TrackedRun

PROJECT = "forethought"


class Wandb:
    """One run of W&B, which a later start of the same model continues. W&B takes no step twice."""

    def __init__(self, run: TrackedRun):
        import wandb

        self._identity = Identity.of(run, "wandb")
        self._html = wandb.Html
        mode = None  # that of WANDB_MODE, or online
        if not os.environ.get("WANDB_MODE") and not wandb.login(prompt=False):
            mode = "offline"  # W&B would ask for a login in the middle of the run
            run.say(
                "W&B: nobody is logged in, so the run is kept in wandb/ beside the checkpoints; wandb sync uploads it."
            )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=self._identity.id,
            resume="allow",
            dir=str(run.folder),
            config=run.preset,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("tokens")
        for curves in ("train/*", "validation/*", "lookahead/*"):
            self._run.define_metric(curves, step_metric="tokens")

    def log(self, record: Record) -> None:
        if (step := self._identity.place(record)) is None:
            return
        figures: dict[str, object] = dict(record.scalars)
        if record.tokens is not None:
            figures["tokens"] = record.tokens
        figures |= {name: self._html(f"<pre>{html.escape(text)}</pre>") for name, text in record.texts.items()}
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()
