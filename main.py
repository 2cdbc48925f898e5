"""Forethought's one entrypoint: choose a preset, or generate; train it; leave with a status that says how it ended.

    python main.py        torchrun --nproc_per_node=N main.py        deepspeed main.py

There are no flags: what a run does stands in configs/*.json. The choice is read from the terminal, or from standard
input where there is none (`printf '02\\n' | python main.py`).
"""

import signal
import sys

from engine import train
from engine.checkpoint.folder import CURRENT
from engine.control.exit import end
from engine.control.signals import watch_signals
from engine.device import machine
from engine.device.ranks import join, leave
from engine.errors import RunError
from engine.screen import menu
from engine.screen.console import Console, open_streams, printable, redact_process


def refuse_flags(arguments: list[str]) -> None:
    """The DeepSpeed launcher appends --local_rank; nothing else is tolerated."""
    for argument in arguments:
        if not argument.startswith("--local_rank=") and not argument.startswith("--local-rank="):
            print(printable(f"main.py takes no arguments, and {argument!r} is one: edit a preset in configs/ instead."))
            raise SystemExit(2)


def main() -> int:
    open_streams()
    redact_process()
    refuse_flags(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while ranks join and leave, Ctrl-C just ends the process
    ranks = join()
    machine.use_cores(ranks.device)
    console = Console(enabled=ranks.is_main)
    try:
        with watch_signals(ranks, console) as watch:
            preset = menu.choose(ranks)
            if preset is not None:
                result = train(preset, ranks=ranks, may_archive=menu.may_archive, watch=watch)
                console.say(
                    f"Done: {result.tokens:,} tokens at {result.tokens_per_second:,.0f} tokens/s; the model is in "
                    f"{result.snapshot}. Generate with it: python main.py, then g."
                )
            elif ranks.is_main:
                menu.converse(menu.CHECKPOINTS / CURRENT)
    except RunError as error:
        console.error(str(error))
        return error.status
    finally:
        leave()
    return 0


if __name__ == "__main__":
    end(main())
