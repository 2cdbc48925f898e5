"""Events as lines of text, one event a line, in rich's markup.

Names, messages and samples come from presets, hubs and models, so each is made `literal` first.
"""

from collections.abc import Iterator

from engine.formatting import about, brief, count
from engine.screen.live.starts import FIRST_STEPS
from engine.screen.live.view import RunView
from engine.screen.text import Event, is_news, literal, lookahead, one_line, plural

TEMPLATES = {  # of the kinds that are shown as they are
    "resume": "[green]resumed[/]  {message}",
    "spike": "[yellow]spike[/]  step {step:,}: loss {loss:.4f} is above {threshold:.4f}",
    "skip": "[yellow]skipped[/]  step {step:,}: {reason} (loss {loss:.4f}); {in_a_row:,} in a row, {total:,} in all",
    "rollback": "[yellow]rollback[/]  {reason}, after step {step:,}: training continues from step {to_step:,} with "
    "text that it has not read yet",
    "save": "[green]saved[/]  {path} at {tokens_total:,} tokens in {seconds:.1f} s",
    "advice": "[yellow]advice[/]  {message}",
}
STAGES = {  # what a run does before its first step, and between steps
    "checkpoint": "reading the checkpoint",
    "sources": "opening the sources",
    "tokenizer": "preparing the tokenizer",
    "model": "building the model",
    "micro-batch": "choosing the micro-batch size",
    "engine": "starting DeepSpeed",
    "validation": "collecting the validation set",
    "data": "starting the data loader",
    "first checkpoint": "saving the new model",
    "compile": "compiling the model",
    "warm-up": "running a warm-up step",
    FIRST_STEPS: "running the first steps",
    "evaluation": "evaluating",
}
SHORT_SECONDS = 2.0  # a stage that took less at the last start is not announced
STALL_SHARE = 0.02  # of the time; less is not worth a word


def take(event: Event, view: RunView) -> list[str]:
    """Add an event to `view` and return its lines; none for one that another version wrote without a field."""
    try:
        view.add(event)
        return lines(event, view)
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def lines(event: Event, view: RunView) -> list[str]:
    """An event's lines; none for a kind that stands in metrics.jsonl only. `view` has the event already."""
    match event["event"]:
        case "run":
            return [literal(sentence) for sentence in run_sentences(event)]
        case "step":
            return [_step(event, view)]
        case "evaluation":
            return _evaluation(event)
        case "stage":
            return _stage(event, view)
        case "source":
            return [_source(event)] if is_news(event) else []
        case kind if kind in TEMPLATES:
            values = {key: literal(value) if isinstance(value, str) else value for key, value in event.items()}
            return [TEMPLATES[kind].format(**values)]
    return []


def stage_name(event: Event) -> str:
    """What is done in a stage, in words."""
    return STAGES.get(event["name"], str(event["name"]))


def run_sentences(event: Event) -> Iterator[str]:
    """What a reader should know of a run before its first step."""
    preset, derived = event["preset"], event["derived"]
    train, seq_length = preset["train"], derived.get("seq_length", preset["model"]["seq_length"])
    processes = plural(derived["world_size"], "process")
    active = derived.get("active_parameters", derived["parameters"])
    of_experts = f", {count(active)} of them read a token" if active < derived["parameters"] else ""
    size = f"{count(derived['parameters'])} parameters{of_experts}, vocabulary {derived['vocab_size']:,}"
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
    mfu = f"relative to the data sheet's {count(peak)} FLOP/s" if peak else "not shown: this device's peak is not known"
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


def _step(event: Event, view: RunView) -> str:
    parts = [
        f"step {event['step']:,}  {count(event['tokens'])} tokens ({event['share']:.1%})",
        f"loss [bold]{event['loss']:.4f}[/]",
        f"{count(event['tokens_per_second'])} tokens/s",
    ]
    if event.get("mfu") is not None:
        parts.append(f"MFU {event['mfu']:.1%}")
    parts.append(f"lr {event['lr']:.2e}")
    if event["data_wait"] >= STALL_SHARE:
        parts.append(f"data stall {event['data_wait']:.0%}")
    if left_out := event.get("core_left_out"):
        parts.append(f"[yellow]lookahead gradient not finite in {plural(left_out, 'step')}[/]")
    if rank := event.get("slow_rank"):
        parts.append(f"[yellow]{slow_rank(rank)}[/]")
    if (seconds := view.remaining.seconds()) is not None:
        parts.append(f"{about(seconds)} left")
    return "  ".join(parts)


def _source(event: Event) -> str:
    """What happened to a source; its name stands there once."""
    colour = "yellow" if event.get("what") in ("dropped", "retry") else "dim"
    name, message = event["name"], event["message"]
    named = message if message.startswith(f"{name} ") else f"{name}: {message}"
    return f"[{colour}]source[/] {literal(named)}"


def slow_rank(found: Event) -> str:
    """The rank that the others wait for, in words."""
    where = f" on {literal(found['host'])}" if found["host"] else ""
    return f"rank {found['rank']}{where} is slow: {found['times_median']:.1f} times the median"


def _evaluation(event: Event) -> list[str]:
    figures = f"perplexity {event['perplexity']:.2f}  bits per byte {event['bits_per_byte']:.4f}"
    found = [f"[cyan]validation[/]  loss [bold]{event['ce']:.4f}[/]  {figures}"]
    if memory := event.get("memory"):
        without = f"{memory['ce_without']:.4f} without it, {memory['tokens']:,} tokens"
        found.append(f"[cyan]memory[/]  loss behind it [bold]{memory['ce']:.4f}[/]  {without}")
    if sample := event.get("sample"):
        prompt, text = one_line(sample["prompt"]), one_line(sample["text"])
        found.append(f"[dim]sample[/]  [bold]{literal(prompt)}[/]{literal(text)}")
    if passage := event.get("passage"):
        found.append(f"[dim]lookahead[/]  {literal(lookahead(passage))}")
    return found


def _stage(event: Event, view: RunView) -> list[str]:
    """A stage that begins before the first step, unless it is known to be short."""
    expected = view.expected.get(event["name"])
    if event["seconds"] is not None or "step" in view.latest or (expected or SHORT_SECONDS) < SHORT_SECONDS:
        return []
    return [f"[dim]{stage_name(event)}" + (f" (about {brief(expected)})" if expected else "") + "[/]"]
