"""What ends a run early: one exception per reason, each with the process's exit status and a sentence for the user."""

from typing import Any


class RunError(Exception):
    """Ends the run with `status`; str() is one or two sentences: what is wrong, where, and what to do."""

    status = 1


class PresetError(RunError):
    """A preset, an argument or an answer that cannot be used."""

    status = 2


class SourcesFailed(RunError):
    """Every source of text has failed; there is nothing real left to train on."""

    status = 3


class CheckpointError(RunError):
    """Checkpoint files exist and none of them can be trusted, or a later version wrote them."""

    status = 4


class SaveError(RunError):
    """The checkpoint folder cannot be written; the snapshots that are there are untouched."""

    status = 5


class FolderMoved(SaveError):
    """The checkpoint folder was moved, removed or replaced during the run; what was trained is saved where it says."""


class FolderInUse(RunError):
    """Another run trains in the checkpoint folder."""

    status = 6


class Diverged(RunError):
    """Too many steps in a row were skipped, or the weights are not finite; the snapshots are untouched.

    Carries what a rollback continues with: the RunState of this moment, the steps skipped so far, and whether a
    checkpoint was saved since the last rollback.
    """

    def __init__(self, what: str, advice: str, *, step: int, skipped: int, state: dict[str, Any], saved: bool):
        super().__init__(f"{what}, after step {step:,}. {advice}")
        self.what, self.step, self.skipped, self.state, self.saved = what, step, skipped, state, saved


class RowsChanged(RunError):
    """The schedule gives rows of another length from here on; the run goes on from the checkpoint it just saved."""

    def __init__(self, before: int, after: int):
        super().__init__(f"Rows of {before:,} tokens end here, and rows of {after:,} begin.")
        self.before, self.after = before, after


class RankLost(RunError):
    """Another rank has ended or hangs; what was trained since the last snapshot is lost."""

    status = 7


class Interrupted(RunError):
    """A signal stopped the run after it saved; the status is the shell's usual 128 + signal number."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.status = 128 + signal_number


def first_line(error: Exception) -> str:
    """Return what an error of another library says, shortly; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
