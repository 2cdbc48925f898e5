"""What a person sees of a run: metrics events as lines, announcements, warnings. Only rank 0 has a console.

Names, messages and samples come from presets, hubs and models: nothing is shown that is secret or a terminal obeys.
"""

import contextlib
import os
import sys
from datetime import timedelta
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape

from sources.redact import redact, redact_process

__all__ = ["Console", "count", "duration", "open_streams", "printable", "redact_process"]

# Of C0 and C1, all but newline and tab: an escape sequence in a model's sample could write into a terminal's title.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    """`text` without secrets and control characters."""
    return redact(text).translate(_CONTROLS)


def open_streams() -> None:
    """Standard streams that are closed, as a daemon's are: a file that took their numbers would get what libraries
    print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
    sys.stdin.reconfigure(errors="replace")  # a key that is not of the terminal's encoding is a wrong answer, no more


class Output:
    """Standard output whose failures pass: a full disk or a closed pipe under it must not end a run."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            try:
                sys.stdout.write(text)
            except UnicodeEncodeError:  # a terminal, or a PYTHONIOENCODING, that has not all characters
                sys.stdout.write(text.encode("ascii", "replace").decode())
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


class Console:
    def __init__(self, enabled: bool = True):
        # Piped output has no width of its own; 80 columns would break the step lines.
        plain = RichConsole(file=Output())
        self.rich = plain if plain.is_terminal else RichConsole(file=Output(), width=160)
        self.enabled = enabled

    def say(self, text: str) -> None:
        """A line as it is."""
        if self.enabled:
            self.rich.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        if self.enabled:
            self.rich.print(f"[yellow]warning:[/] {escape(printable(text))}", highlight=False, soft_wrap=True)

    def error(self, text: str) -> None:
        if self.enabled:
            self.rich.print(f"[red]stopped:[/] {escape(printable(text))}", highlight=False, soft_wrap=True)

    def show(self, event: dict[str, Any]) -> None:
        """Prints a metrics event; kinds without a line of their own are only written to the file."""
        if self.enabled and (line := _LINES.get(event["event"])):
            self.rich.print(printable(line(event)), highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or as days where there are some."""
    if not seconds < 1e11:  # thousands of years, or no number
        return "?"
    return str(timedelta(seconds=round(seconds)))


def count(number: float) -> str:
    """A count in three digits: 950, 12.3k, 4.56M, 1.20G, 989T."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            scaled = number / limit
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{unit}"
    return f"{number:.0f}"


def _step(event: dict[str, Any]) -> str:
    sources = " ".join(f"{escape(name)} {loss:.3f}" for name, loss in event["sources"].items())
    several = f" ({sources})" if len(event["sources"]) > 1 else ""
    figures = " ".join(f"{name} {value:.3g}" for name, value in event["auxiliary"].items())
    ahead = f"  ahead ({figures})" if figures else ""
    if left_out := event.get("core_left_out"):
        ahead += f"  [yellow]the core's gradient was not finite in {left_out} step{'s' if left_out > 1 else ''}[/]"
    mfu = f"MFU {event['mfu']:.1%}  " if event.get("mfu") is not None else ""
    return (
        f"step {event['step']:>6,}  {count(event['tokens'])} tokens ({event['share']:.1%})  "
        f"loss [bold]{event['loss']:.4f}[/]{several}{ahead}  {count(event['tokens_per_second'])} tok/s  "
        f"{mfu}lr {event['lr']:.2e}  grad {event['grad_norm']:.2f}  data wait {event['data_wait']:.1%}  "
        f"ETA {duration(event['eta_seconds'])}"
    )


def _evaluation(event: dict[str, Any]) -> str:
    sources = " ".join(f"{escape(name)} {value['ce']:.3f}" for name, value in event["sources"].items())
    line = (
        f"[cyan]held-out[/]  CE [bold]{event['ce']:.4f}[/]  perplexity {event['perplexity']:.2f}  "
        f"bits per byte {event['bits_per_byte']:.4f}  ({sources})  {count(event['tokens'])} tokens "
        f"in {event['seconds']:.1f} s"
    )
    if event.get("sample"):
        prompt, text = event["sample"]["prompt"], event["sample"]["text"]
        line += f"\n[dim]sample:[/] [bold]{escape(prompt)}[/]{escape(text)}"
    if event.get("passage"):
        line += f"\n[dim]ahead:[/] {_ahead(event['passage'])}"
    return line


def _ahead(passage: list[dict[str, Any]]) -> str:
    """What the model expected after the middle of a passage, and what came."""
    middle = len(passage) // 2
    said = passage[middle]
    read = "".join(ahead["token"] for ahead in passage[: middle + 1])[-60:]
    guessed = "".join(place[0][0] for place in said["guesses"])
    came = "".join(ahead["token"] for ahead in passage[middle + 1 : middle + 1 + len(said["guesses"])])
    line = f"after [bold]{escape(repr(read))}[/] it expected {escape(repr(guessed))}, and {escape(repr(came))} came"
    for horizon, expected in list(said["expected_nll"].items())[-1:]:
        realised = said["realised_nll"].get(horizon)
        line += f"; of the next {horizon} tokens {expected:.2f} nats each"
        line += "" if realised is None else f", and they cost {realised:.2f}"
    return line


def _save(event: dict[str, Any]) -> str:
    return (
        f"[green]saved[/]  {escape(event['path'])} at {count(event['tokens_total'])} tokens in {event['seconds']:.1f} s"
    )


def _source(event: dict[str, Any]) -> str:
    colour = "yellow" if event["what"] in ("dropped", "retry") else "dim"
    return f"[{colour}]source[/] {escape(event['name'])}: {escape(event['message'])}"


def _spike(event: dict[str, Any]) -> str:
    return f"[yellow]spike[/]  step {event['step']:,}: loss {event['loss']:.4f} is above {event['threshold']:.4f}"


def _skip(event: dict[str, Any]) -> str:
    return (
        f"[yellow]skipped[/]  step {event['step']:,}: {event['reason']} (loss {event['loss']:.4f}); "
        f"{event['in_a_row']:,} in a row, {event['total']:,} in all"
    )


def _rollback(event: dict[str, Any]) -> str:
    return (
        f"[yellow]rollback[/]  {escape(event['reason'])}, after step {event['step']:,}: back to step "
        f"{event['to_step']:,}, on with text that was not read yet"
    )


_LINES = {
    "step": _step,
    "spike": _spike,
    "skip": _skip,
    "rollback": _rollback,
    "evaluation": _evaluation,
    "save": _save,
    "source": _source,
    "resume": lambda event: f"[green]resumed[/]  {escape(event['message'])}",
}
