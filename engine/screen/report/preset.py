"""The preset with what derives from it, and the machine."""

import json
from collections.abc import Callable
from typing import Any

from engine.formatting import count
from engine.screen.report.history import History
from engine.screen.report.markup import moment, section, table, text
from engine.screen.text import as_html, plural


def as_section(history: History) -> str:
    """Tables of what follows from the preset and of the machine, and the whole preset, folded."""
    run = history.latest.get("run")
    if not run:
        return ""
    derived, preset = run.get("derived", {}), run.get("preset", {})
    whole = as_html(json.dumps(preset, indent=2, ensure_ascii=False))
    body = (
        f'<div class="columns"><div><h3>Model and steps</h3>{table(_model(preset, derived))}</div>'
        f"<div><h3>Machine</h3>{table(_machine(run, derived))}</div></div>"
        f"<details><summary>The whole preset</summary><pre>{whole}</pre></details>"
    )
    return section("preset", f"Preset {as_html(preset.get('name'))}", body)


def _model(preset: dict[str, Any], derived: dict[str, Any]) -> list[tuple[str, str]]:
    model, train = preset.get("model", {}), preset.get("train", {})
    budget, batch = derived.get("token_budget"), derived.get("global_batch_tokens")
    micro = [_number(train.get(key)) for key in ("per_gpu_batch_size", "accumulation_steps")]
    shape = [words(model[key]) for key, words in SHAPE.items() if isinstance(model.get(key), int)]
    keys = [key for key, on in preset.get("auxiliary", {}).items() if key.startswith("enable_") and on is True]
    parts = [key.removeprefix("enable_").replace("_", " ") for key in keys]
    return [
        ("Parameters", _number(derived.get("parameters"))),
        ("Shape", ", ".join(shape)),
        ("Vocabulary", _number(derived.get("vocab_size"))),
        ("Sequence length", _number(model.get("seq_length"))),
        ("Tokens of a run", _number(budget)),
        ("Tokens of a step", _number(batch)),
        ("Steps of a run", _number(-(-budget // batch)) if budget and batch else ""),
        ("Micro-batch", "{} rows, {} a step".format(*micro) if all(micro) else ""),
        ("Learning rate", f"{train['learning_rate']:g}" if "learning_rate" in train else ""),
        ("Optimizer", text(train.get("optimizer", ""))),
        ("Auxiliary", text(", ".join(parts))),
        ("Validation tokens", _number(derived.get("held_out_tokens"))),
        ("FLOP of a token", count(derived["flops_per_token"]) if "flops_per_token" in derived else ""),
    ]


SHAPE: dict[str, Callable[[int], str]] = {
    "num_layers": lambda number: plural(number, "layer"),
    "hidden_size": lambda number: f"{number:,} wide",
    "num_heads": lambda number: plural(number, "head"),
}


def _machine(run: dict[str, Any], derived: dict[str, Any]) -> list[tuple[str, str]]:
    instructions = derived.get("bf16_instructions")
    precision = derived.get("precision", "") + (f" with {instructions}" if instructions else "")
    peak, compiled = derived.get("peak_flops"), derived.get("compiled")
    return [
        ("Machine", text(run.get("machine", ""))),
        ("Processes", _number(derived.get("world_size"))),
        ("Precision", text(precision)),
        ("ZeRO stage", _number(derived.get("zero_stage"))),
        ("Compiled", "" if compiled is None else "yes" if compiled else "no"),
        ("Peak FLOP/s", count(peak) if peak else "unknown"),
        ("Data lanes", _number(derived.get("lanes"))),
        ("Data workers", _number(derived.get("data_workers"))),
        ("Latest start", moment(run.get("time")) + " UTC"),
    ]


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
