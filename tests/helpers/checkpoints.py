"""Small snapshots to save."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.folder import CURRENT, MIRROR, PREV, PREV2, CheckpointFolder, RestoredCheckpoint
from model import AuxiliaryConfig, LanguageModel, ModelConfig, TransformerLM
from model.decoding.fitted import Fitted, PlanWeights
from model.snapshot.file import Snapshot, write
from sources.rows.tokenizer import train_bpe

SHAPE = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16)

TOKENIZER = "{}"


def snapshot(tokens: int) -> Snapshot:
    torch.manual_seed(tokens)
    return Snapshot(
        model=TransformerLM(SHAPE, 64).state_dict(),
        config={**SHAPE.model_dump(), "vocab_size": 64, "eos_token_id": 0},
        tokenizer=TOKENIZER,
        preset={},
        progress={"run": 1, "step": tokens // 10, "tokens_in_run": tokens, "tokens_total": tokens, "evaluation": None},
    )


def write_model(path: Path, preset: Mapping[str, Any]) -> None:
    """A snapshot of an untrained model whose tokenizer cuts real words, so that it writes text and can be exported."""
    tokenizer = train_bpe(iter(["the quick brown fox jumps over the lazy dog. " * 50]), 300)
    torch.manual_seed(0)
    weights = TransformerLM(SHAPE, 300).state_dict()
    config = {**SHAPE.model_dump(), "vocab_size": 300, "eos_token_id": tokenizer.eos_id}
    parts = {"model": weights, "config": config, "tokenizer": tokenizer.to_json(), "preset": preset}
    write(path, replace(snapshot(10), **parts))


def planning_model() -> LanguageModel:
    """An untrained model with a drafter, which plans at every place."""
    tokenizer = train_bpe(iter(["the quick brown fox jumps over the lazy dog. " * 50]), 300)
    torch.manual_seed(0)
    drafts = {"enable_draft": True, "draft_rollouts": 0}
    shape = SHAPE.model_copy(update={"seq_length": 64, "init_std": 0.3})
    model = TransformerLM(shape, 300, AuxiliaryConfig(**drafts))
    lm = LanguageModel(model.eval(), tokenizer.to_json(), tokenizer.eos_id, {"auxiliary": drafts})
    lm.fitted = Fitted(plan=PlanWeights(-1.0, 0.5, 0.0, 4.0, "drafter"))
    return lm


def optimizer(tokens: int) -> dict:
    moments = {key: torch.full((2, 2), float(tokens)) for key in ("exp_avg", "exp_avg_sq")}
    return {"step": tokens, "moments": {"tokens.weight": moments}}


def save(folder: CheckpointFolder, tokens: int) -> None:
    folder.save(snapshot(tokens), optimizer(tokens), {"loader": {"row": tokens}})


def flip(path: Path) -> None:
    """Turns one bit of a file, in place: its hard links hold the same."""
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def tokens(restored: RestoredCheckpoint) -> int:
    return restored.snapshot.progress["tokens_total"]


def tokens_of(folder: CheckpointFolder) -> list[int]:
    """Tokens of the snapshot under each of the four names that exists."""
    names = [name for name in (CURRENT, PREV, PREV2, MIRROR) if (folder.folder / name).exists()]
    return [torch.load(folder.folder / n, weights_only=True)["progress"]["tokens_total"] for n in names]
