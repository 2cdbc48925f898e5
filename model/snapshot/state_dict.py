"""Loading a state dict into a model that need not be identical, and how two configurations differ."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..positions import extended_rows
from ..transformer import TransformerLM
from .vetting import shown

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_NOT_ARCHITECTURE = ("seq_length", "dropout", "init_std", "head_init", "z_loss", "eos_token_id")
_NOT_ARCHITECTURE += ("rope_scaling", "rope_original_length", "position_extension", "layer_rescaling")
_OF_EXPERTS = ("num_experts", "experts_per_token", "shared_experts", "moe_layers", "expert_hidden_size")


@dataclass
class LoadReport:
    """Parameter names by what `restore` did with them."""

    loaded: list[str] = field(default_factory=list)
    extended: list[str] = field(default_factory=list)  # loaded, with rows added to or ignored from the file's
    new: list[str] = field(default_factory=list)  # in the model only: they keep their initialisation
    left_out: list[str] = field(default_factory=list)  # in the file only, or of another shape

    def summary(self) -> str:
        """One or two sentences for the console."""
        sentences = [f"Loaded {len(self.loaded)} of {len(self.loaded) + len(self.new)} parameters"]
        if self.extended:
            sentences[0] += f" (resized: {self._first(self.extended)})"
        notes = []
        if self.new:
            notes.append(f"starting fresh: {self._first(self.new)}")
        if self.left_out:
            notes.append(f"in the file but not used: {self._first(self.left_out)}")
        if notes:
            sentence = "; ".join(notes)
            sentences.append(sentence[0].upper() + sentence[1:])
        return ". ".join(sentences) + "."

    def _first(self, names: list[str]) -> str:
        """The first four names as a list; a part of the lookahead core of which nothing was loaded is one name."""
        loaded = {_core_part(name) for name in self.loaded}
        names = list(dict.fromkeys(name if _core_part(name) in loaded else _core_part(name) for name in names))
        first = ", ".join(map(shown, names[:4]))
        return first if len(names) <= 4 else f"{first} and {len(names) - 4} more"


def _core_part(name: str) -> str:
    """The part of the lookahead core that a parameter belongs to; of any other parameter its own name."""
    return re.sub(r"^(latent\.\w+)\..*", r"\1", name)


@torch.no_grad()
def restore(model: TransformerLM, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Load what fits into `model`, in place, and report the rest; names and shapes that do not fit never raise.

    More positions in the file extend the model first; fewer are extended as positions.py describes. Vocabulary rows may
    differ in padding only. Wrapper prefixes ("module.", "_orig_mod.") are removed. With both on the meta device, this
    compares names and shapes.
    """
    weights = {_bare_name(name): tensor for name, tensor in state_dict.items()}
    report = LoadReport()

    positions = weights.get("positions.weight")
    own = None if model.positions is None else model.positions.weight
    if positions is not None and own is not None and positions.shape[1:] == own.shape[1:] and len(positions) > len(own):
        model.extend_max_seq_len(len(positions))
        report.extended.append("positions.weight")

    for name, parameter in _kept(model).items():
        tensor = weights.pop(name, None)
        if tensor is None:
            report.new.append(name)
            continue
        rows = _fitting_rows(model, name, tensor, parameter)
        if rows is None:
            report.new.append(name)
            report.left_out.append(name)
            continue
        parameter[: len(rows)] = rows
        report.loaded.append(name)
        if rows.shape != tensor.shape:
            report.extended.append(name)
    report.left_out.extend(weights)
    return report


def _kept(model: TransformerLM) -> dict[str, Tensor]:
    """The parameters, and the biases of routers, which are buffers, by name."""
    return {name: parameter for name, parameter in model.named_parameters()} | {
        name: buffer for name, buffer in model.named_buffers() if name.endswith("router.expert_bias")
    }


def learned_positions(state_dict: Mapping[str, Tensor]) -> int:
    """The number of learned positions in it; 0 where they are rotary."""
    return next((len(rows) for name, rows in state_dict.items() if _bare_name(name) == "positions.weight"), 0)


def has_biases(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the linear layers of the blocks have biases in it."""
    return any(_bare_name(name) in ("blocks.0.attention.in_proj_bias", "blocks.0.mlp.up.bias") for name in state_dict)


def _bare_name(name: str) -> str:
    return _WRAPPERS.sub("", name).replace("._orig_mod.", ".")


def _fitting_rows(model: TransformerLM, name: str, tensor: Tensor, parameter: Tensor) -> Tensor | None:
    """The leading rows of `parameter` that `tensor` provides, or None when it does not fit."""
    if tensor.shape == parameter.shape:
        return tensor
    if tensor.ndim != 2 or tensor.shape[1] != parameter.shape[1] or not len(tensor):
        return None
    if name == "positions.weight":
        return extended_rows(tensor, len(parameter), model.config.position_extension)
    if name in ("tokens.weight", "lm_head.weight"):
        most = -(-model.vocab_size // 128) * 128  # vocabularies are padded to 64 or 128; more rows are another one
        if model.vocab_size <= len(tensor) <= most:
            return tensor[: model.vocab_size]
    return None


def architecture_differences(checkpoint: Mapping[str, Any], preset: Mapping[str, Any]) -> list[str]:
    """One sentence for each key in which two configurations describe different networks.

    Sequence length, dropout and the initial standard deviation do not count: weights load across them. A dense model
    may get experts, and memory tokens may come and go. A missing key has its default.
    """
    defaults = {name: info.default for name, info in ModelConfig.model_fields.items()}
    without_experts = not checkpoint.get("num_experts")  # then it is upcycled, or has none at all
    ignored = _NOT_ARCHITECTURE + (_OF_EXPERTS if without_experts else ())
    if not (checkpoint.get("memory_tokens") and preset.get("memory_tokens")):
        ignored += ("memory_tokens",)
    names = [name for name in dict.fromkeys([*checkpoint, *preset]) if name not in ignored]
    pairs = [(name, checkpoint.get(name, defaults.get(name)), preset.get(name, defaults.get(name))) for name in names]
    return [
        f"{name} {ours} in the checkpoint, {theirs} in the preset" for name, ours, theirs in pairs if ours != theirs
    ]
