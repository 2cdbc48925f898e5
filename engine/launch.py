"""What follows the choice: this process joins the others, trains or does what was chosen, and ends with a status.

Imported after the first screen: torch, DeepSpeed and the rest of a run take seconds.
"""

import os
import signal

from engine.config import parse_preset
from engine.control import failure
from engine.control.signals import watch_signals
from engine.device import machine
from engine.device.ranks import join, leave
from engine.errors import FolderInUse, RunError
from engine.screen import menu
from engine.screen.console import Console
from engine.screen.conversation import Conversation
from engine.screen.exporting import export
from engine.screen.live.watch import offered
from engine.training import train

ACTIONS = {"g": lambda folder: Conversation(folder).run(), "e": export}


def launch(chosen: menu.Choice | RunError | None) -> int:
    """Train the chosen preset, or do what the key means; return the exit status.

    `chosen` counts on rank 0 alone: the others wait for it, and a RunError in its place ends all.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while ranks join and leave, Ctrl-C just ends the process
    console = Console(enabled=os.environ.get("LOCAL_RANK", "0") == "0")  # until ranks know of each other
    try:
        ranks = join()
        machine.use_cores(ranks.device)
        console.enabled = ranks.is_main
        with watch_signals(ranks, console) as watch:
            choice = ranks.on_main(lambda: _or_raise(chosen))
            if isinstance(choice, dict):
                result = train(parse_preset(choice), ranks=ranks, may_archive=menu.may_archive, watch=watch)
                console.say(result.summary())
        if isinstance(choice, str) and choice in ACTIONS and ranks.is_main:
            ACTIONS[choice](menu.CHECKPOINTS)
    except RunError as error:
        console.error(str(error))
        return 0 if isinstance(error, FolderInUse) and offered(menu.CHECKPOINTS) else error.status
    except Exception as error:
        return failure.report(error, menu.CHECKPOINTS, Console().error, int(os.environ.get("RANK", "0")))
    finally:
        leave()
    return 0


def _or_raise(chosen: menu.Choice | RunError | None) -> menu.Choice | None:
    if isinstance(chosen, RunError):
        raise chosen
    return chosen
