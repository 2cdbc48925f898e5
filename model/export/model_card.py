"""The model card of an export: what the model is, what it was trained on, and its run's own figures.

All of it is read off the snapshot; where that does not say, the card does not either. Paths of this machine stay here:
a source without a name is called by its kind.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from ..config import ModelConfig
from ..snapshot import Snapshot
from .architecture import exported_tensors

_NOT_STATED = "not stated by the run"
_KEPT_TO_ITSELF = ("path", "cache_dir", "glob")


def model_card(
    snapshot: Snapshot, config: ModelConfig, notes: tuple[str, ...], licences: Mapping[str, str], architecture: str
) -> str:
    """README.md of an export, with the metadata that the Hugging Face hub reads at its head.

    `licences`: what is known of the licence of each source, by the source's name.
    """
    name = snapshot.preset.get("name") or "model"
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- forethought\n---",
        f"# {name}",
        f"A small language model, trained from scratch with Forethought{_described(snapshot)}. Its architecture is "
        f"`{architecture}`: {config.num_layers} layers of {config.hidden_size}, sequences of {config.seq_length} "
        f"tokens, {_parameters(snapshot):,} parameters.",
        "## Use",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\nmodel = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'ids = tokenizer("Once", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))\n```",
        "Every document of the training followed an end-of-text token, so the tokenizer puts that token before each "
        f"text. The model reads at most {config.seq_length} tokens at once, this one included. What looks like a "
        "special token in a text is read as text.",
        *notes,
        "It is a small model: it writes text that looks like its training text, states falsehoods, and repeats what "
        "that text holds, its prejudices too. It follows no instructions.",
        "## Figures",
        _figures(snapshot.progress),
        "## Training text",
        _sources(snapshot.preset.get("data") or {}, licences),
        "## Training configuration",
        f"```json\n{json.dumps(_configuration(snapshot, config), indent=2, ensure_ascii=False)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _described(snapshot: Snapshot) -> str:
    description = snapshot.preset.get("description")
    return f": {description}" if isinstance(description, str) and description else ""


def _parameters(snapshot: Snapshot) -> int:
    assert snapshot.config is not None, "a whole snapshot"
    tensors = exported_tensors(snapshot.model, snapshot.config["vocab_size"])
    return sum(tensor.numel() for tensor in tensors.values())


def _figures(progress: Mapping[str, Any]) -> str:
    evaluation = progress.get("evaluation") or {}
    rows = {"Tokens trained on": progress.get("tokens_total"), "Optimizer steps": progress.get("step")}
    table = {what: f"{value:,}" for what, value in rows.items() if isinstance(value, int)}
    loss, bits = evaluation.get("ce"), evaluation.get("bits_per_byte")
    if isinstance(loss, float):
        table |= {"Validation loss (nats per token)": f"{loss:.4f}", "Validation perplexity": f"{math.exp(loss):.2f}"}
    if isinstance(bits, float):
        table["Bits per byte of the validation text"] = f"{bits:.4f}"
    if not table:
        return f"Training figures: {_NOT_STATED}."
    lines = [f"| {what} | {value} |" for what, value in table.items()]
    held_out = "The validation text was held out of the training text, from the same sources."
    return "\n".join(["| | |", "| --- | --- |", *lines]) + (f"\n\n{held_out}" if isinstance(loss, float) else "")


def _sources(data: Mapping[str, Any], licences: Mapping[str, str]) -> str:
    sources = [spec for spec in data.get("sources") or [] if isinstance(spec, dict)]
    if not sources:
        return f"Sources: {_NOT_STATED}."
    weights = data.get("source_weights") or {}
    lines = ["| source | data set | weight | licence |", "| --- | --- | --- | --- |"]
    for spec in sources:
        own = str(spec.get("name") or spec.get("dataset") or spec.get("path") or spec.get("type"))
        weight = weights.get(own, 1.0) if data.get("mix_strategy") == "weighted" else "equal"
        licence = licences.get(own, "not stated here: see the source")
        lines.append(" | ".join(["", shown_name(spec), _data_set(spec), str(weight), licence, ""]).strip())
    return "\n".join(lines)


def shown_name(spec: Mapping[str, Any]) -> str:
    """What a source is called where others read it: its name, or its kind where it has no other name than a path."""
    name = spec.get("name") or spec.get("dataset") or spec.get("type")
    return _cell(spec.get("type") if _is_path(name) else name)


def _data_set(spec: Mapping[str, Any]) -> str:
    parts = [spec.get(key) for key in ("dataset", "config", "split", "revision")]
    shown = [f"`{_cell(part)}`" for part in parts if part and not _is_path(part)]
    return " ".join(shown) if spec.get("dataset") and shown else f"local: {_cell(spec.get('type'))}"


def _is_path(text: object) -> bool:
    """Whether this names a place on the machine of the run: an absolute, relative or home path, on any system."""
    return str(text).startswith(("/", ".", "~", "\\")) or "\\" in str(text) or ":" in str(text)[:3]


def _cell(text: object) -> str:
    return " ".join(str(text).replace("|", "/").replace("`", "'").split())[:100]


def _configuration(snapshot: Snapshot, config: ModelConfig) -> dict[str, Any]:
    """The sections of the preset, without sources and paths; `model` as it is in this export."""
    data = {
        key: value
        for key, value in (snapshot.preset.get("data") or {}).items()
        if key not in ("sources", "source_weights", "decontaminate", *_KEPT_TO_ITSELF) and not _is_path(value)
    }
    sections = {"model": config.model_dump(), "train": snapshot.preset.get("train"), "data": data}
    return {name: section for name, section in sections.items() if section}
