"""Forethought's one entrypoint: choose a preset and train it, or use the model. The exit status says how it ended.

    python main.py        torchrun --nproc_per_node=N main.py        deepspeed main.py

There are no flags: configs/*.json says what a run does. Without a terminal: `printf '02\\n' | python main.py`.
"""

import os
import signal
import sys

try:
    from engine import TOKENS_PER_RUN, train
except ImportError as missing:  # a package, or a newer Python
    sys.exit(print(missing) or 2)
from engine.config import parse_preset
from engine.control.exit import end
from engine.control.signals import watch_signals
from engine.device import machine
from engine.device.ranks import join, leave
from engine.errors import FolderInUse, RunError
from engine.screen import menu
from engine.screen.console import Console
from engine.screen.live.watch import offered
from engine.screen.streams import prepare_streams
from engine.screen.text import printable


def refuse_flags(arguments: list[str]) -> None:
    """Ends the process with status 2 on any argument but --local_rank, which the DeepSpeed launcher adds."""
    for argument in arguments:
        if not argument.startswith(("--local_rank=", "--local-rank=")):
            print(printable(f"main.py takes no arguments, and {argument!r} is one: start it without, for its menu."))
            raise SystemExit(2)


def main() -> int:
    prepare_streams()
    refuse_flags(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while ranks join and leave, Ctrl-C just ends the process
    console = Console(enabled=os.environ.get("LOCAL_RANK", "0") == "0")
    try:
        ranks = join()
        machine.use_cores(ranks.device)
        console.enabled = ranks.is_main
        with watch_signals(ranks, console) as watch:
            chosen = ranks.on_main(lambda: menu.choose(TOKENS_PER_RUN))
            if isinstance(chosen, dict):
                result = train(parse_preset(chosen), ranks=ranks, may_archive=menu.may_archive, watch=watch)
                console.say(result.summary())
        if isinstance(chosen, str) and ranks.is_main:
            menu.ACTIONS[chosen].run(menu.CHECKPOINTS)
    except RunError as error:
        console.error(str(error))
        return 0 if isinstance(error, FolderInUse) and offered(menu.CHECKPOINTS) else error.status
    finally:
        leave()
    return 0


if __name__ == "__main__":
    end(main())
