"""Forethought's one entrypoint: choose a preset and train it, or use the model. The exit status says how it ended.

    python main.py        torchrun --nproc_per_node=N main.py        deepspeed main.py

There are no flags: configs/*.json says what a run does. At a terminal a picker shows the presets: arrow keys move,
Enter trains, or resumes the run in checkpoints/; d shows details, n makes a new preset, g generates, e exports, r opens
the report, q quits. Without a terminal the answer is a line of standard input: printf '02\\n' | python main.py
Ctrl-C saves and stops; the next start continues. README.md and docs/ say more.
"""

import os
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a process that still imports

try:
    from engine import TOKENS_PER_RUN
except ImportError as missing:  # a package, or a newer Python
    sys.exit(print(missing) or 2)
from engine.control import early, failure  # noqa: E402
from engine.control.exit import end  # noqa: E402
from engine.errors import RunError  # noqa: E402
from engine.screen import dialog, menu  # noqa: E402
from engine.screen.console import Console  # noqa: E402
from engine.screen.streams import prepare_streams  # noqa: E402
from engine.screen.text import printable  # noqa: E402


def read_arguments(arguments: list[str]) -> None:
    """Ends the process on any argument but --local_rank, which the DeepSpeed launcher adds; with status 0 on --help."""
    for argument in arguments:
        if argument in ("-h", "--help"):
            print(str(__doc__).rstrip())
            raise SystemExit(0)
        if not argument.startswith(("--local_rank=", "--local-rank=")):
            print(printable(f"main.py takes no arguments, and {argument!r} is one: start it without, for its menu."))
            raise SystemExit(2)


def main() -> int:
    prepare_streams()
    read_arguments(sys.argv[1:])
    console = Console(enabled=os.environ.get("RANK", "0") == "0")
    try:
        chosen = menu.choose_for_all(TOKENS_PER_RUN) if console.enabled else None
        with early.ends_at_once(console.error), dialog.working("Loading PyTorch and DeepSpeed", console.enabled):
            from engine.launch import launch  # after the first screen: it takes seconds
        return launch(chosen)
    except RunError as error:
        console.error(str(error))
        return error.status
    except Exception as error:
        return failure.report(error, menu.CHECKPOINTS, console.error)


if __name__ == "__main__":
    end(main())
