"""The lines of a run in a terminal: events and messages. Only rank 0 shows any.

Names, messages and samples come from presets, hubs and models, so each is made `literal` first.
"""

from collections.abc import Iterator

from rich.console import Console as RichConsole

from engine.formatting import count, duration
from engine.screen.streams import OUTPUT
from engine.screen.text import Event, literal, lookahead, plural

TEMPLATES = {  # in rich's markup, of the kinds that are shown as they are
    "resume": "[green]resumed[/]  {message}",
    "spike": "[yellow]spike[/]  step {step:,}: loss {loss:.4f} is above {threshold:.4f}",
    "skip": "[yellow]skipped[/]  step {step:,}: {reason} (loss {loss:.4f}); {in_a_row:,} in a row, {total:,} in all",
    "rollback": "[yellow]rollback[/]  {reason}, after step {step:,}: training continues from step {to_step:,} with "
    "text that it has not read yet",
    "advice": "[cyan]advice[/]  {message}",
    "source": "[{colour}]source[/] {name}: {message}",
    "save": "[green]saved[/]  {path} at {tokens_total:,} tokens in {seconds:.1f} s",
}


class Console:
    """Prints events and messages; one that is not enabled prints nothing."""

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._rich = RichConsole(file=OUTPUT, soft_wrap=True, highlight=False, emoji=False)

    def say(self, text: str) -> None:
        self._print(literal(text))

    def warn(self, text: str) -> None:
        self._print(f"[yellow]warning:[/] {literal(text)}")

    def error(self, text: str) -> None:
        self._print(f"[red]stopped:[/] {literal(text)}")

    def show(self, event: Event) -> None:
        """Prints an event, if its kind has lines of its own."""
        if self.enabled and (lines := _render(event)):
            self._print(lines)

    def _print(self, markup: str) -> None:
        if self.enabled:
            self._rich.print(markup)


def _render(event: Event) -> str | None:
    """An event's lines, in rich's markup; None for a kind that stands in metrics.jsonl only."""
    match event["event"]:
        case "run":
            return "\n".join(map(literal, run_sentences(event)))
        case "step":
            return _step(event)
        case "evaluation":
            return _evaluation(event)
        case kind if kind in TEMPLATES:
            values = {key: literal(value) if isinstance(value, str) else value for key, value in event.items()}
            colour = "yellow" if event.get("what") in ("dropped", "retry") else "dim"
            return TEMPLATES[kind].format(colour=colour, **values)
    return None


def run_sentences(event: Event) -> Iterator[str]:
    """What a reader should know of a run before its first step."""
    preset, derived = event["preset"], event["derived"]
    train, seq_length = preset["train"], preset["model"]["seq_length"]
    processes = plural(derived["world_size"], "process")
    size = f"{count(derived['parameters'])} parameters, vocabulary {derived['vocab_size']:,}"
    yield f"Run {derived['run']} of {preset['name']}: {size}, {processes} on {event['machine']}."
    rows, padded, stage = train["per_gpu_batch_size"], derived["rows_per_pass"], derived["zero_stage"]
    instructions = derived.get("bf16_instructions")
    precision = derived["precision"] + (f" with {instructions}" if instructions else "")
    asked_stage, alone = train["zero_stage"], ""
    if stage != asked_stage:
        alone = " (auto)" if asked_stage == "auto" else f" ({asked_stage} with several processes)"
    step = f"{derived['global_batch_tokens'] // seq_length:,} rows of {seq_length:,} tokens"
    batches = f"{plural(train['accumulation_steps'], 'micro-batch')} of {plural(rows, 'row')} per process"
    yield f"A step has {step}: {batches}. Precision {precision}, ZeRO stage {stage}{alone}."
    peak, cost = derived["peak_flops"], count(derived["flops_per_token"])
    mfu = f"relative to the data sheet's {count(peak)} FLOP/s" if peak else "unknown: no table has this device's peak"
    yield f"A token costs {cost} FLOP (6 per weight of a matrix product, plus attention). MFU is {mfu}."
    asked, budget = train["train_tokens"], derived["token_budget"]
    if asked not in (None, budget):
        yield f"train.train_tokens {asked:,} is overridden: a run is {budget:,} tokens."
    if padded > rows:
        more = f"{padded} rows instead of {rows}, the others for padding ({padded / rows - 1:.0%} more to compute)"
        uneven = f"{processes} cannot share this checkpoint's {derived['lanes']} data lanes evenly:"
        yield f"{uneven} a micro-batch has {more}."
    if idle := derived.get("idle_gpus"):
        yield f"Idle GPUs: {idle}; start with deepspeed main.py to use them all."
    tokens, requested = derived["held_out_tokens"], train["eval_tokens"]
    reasons = derived.get("held_out_shortfalls", {})
    because = ": " + "; ".join(f"{name} {reason}" for name, reason in reasons.items()) if reasons else ""
    if not tokens:
        yield f"There is no validation set, so there are no evaluations{because}."
    elif tokens < 0.9 * requested:
        yield f"The validation set has {tokens:,} of the {requested:,} tokens requested, in whole documents{because}."


def _step(event: Event) -> str:
    figures = " ".join(f"{name} {value:.3g}" for name, value in event["auxiliary"].items())
    core = f"lookahead ({figures})  " if figures else ""
    if left_out := event.get("core_left_out"):
        core += f"[yellow]the lookahead core's gradient was not finite in {plural(left_out, 'step')}[/]  "
    slow = f"  [yellow]{slow_rank(rank)}[/]" if (rank := event.get("slow_rank")) else ""
    mfu = f"MFU {event['mfu']:.1%}  " if event.get("mfu") is not None else ""
    return (
        f"step {event['step']:>6,}  {count(event['tokens'])} tokens ({event['share']:.1%})  "
        f"loss [bold]{event['loss']:.4f}[/]  {_by_source(event['sources'])}{core}"
        f"{count(event['tokens_per_second'])} tokens/s  {mfu}lr {event['lr']:.2e}  grad norm {event['grad_norm']:.2f}  "
        f"data stall {event['data_wait']:.1%}  ETA {duration(event['eta_seconds'])}{slow}"
    )


def slow_rank(found: Event) -> str:
    """The rank that the others wait for, in words."""
    where = f" on {literal(found['host'])}" if found["host"] else ""
    return f"rank {found['rank']}{where} is slow: {found['times_median']:.1f} times the median"


def _by_source(losses: dict[str, float]) -> str:
    """The loss of each of several sources; nothing where the whole loss is one source's."""
    figures = " ".join(f"{literal(name)} {loss:.3f}" for name, loss in losses.items())
    return f"({figures})  " if len(losses) > 1 else ""


def _evaluation(event: Event) -> str:
    sources = _by_source({name: figures["ce"] for name, figures in event["sources"].items()})
    figures = f"perplexity {event['perplexity']:.2f}  bits per byte {event['bits_per_byte']:.4f}"
    took = f"{count(event['tokens'])} tokens in {event['seconds']:.1f} s"
    line = f"[cyan]validation[/]  loss [bold]{event['ce']:.4f}[/]  {sources}{figures}  {took}"
    if sample := event.get("sample"):
        line += f"\n[dim]sample:[/] [bold]{literal(sample['prompt'])}[/]{literal(sample['text'])}"
    if passage := event.get("passage"):
        line += f"\n[dim]lookahead:[/] {literal(lookahead(passage))}"
    return line
