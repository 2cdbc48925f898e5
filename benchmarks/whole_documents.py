"""The loss of whole held-out documents, each model reading as `lm.score` does, whatever the length of its rows."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from engine.checkpoint.folder import CURRENT
from engine.config import Preset
from engine.device.ranks import local_device
from model import load
from sources.held_out import collect_validation_set
from sources.registry import open_sources
from sources.rows.tokenizer import TextTokenizer


def held_out_texts(folder: Path, made: Preset) -> list[str]:
    """The documents of a run's validation set."""
    lm = load(folder / CURRENT)
    tokenizer = TextTokenizer.from_json(lm.tokenizer.to_str(), lm.eos_token_id)
    opened, length = open_sources(made.data), made.model.seq_length
    found = collect_validation_set(
        opened.sources, made.data, tokenizer, seq_length=length, eval_tokens=made.train.eval_tokens
    )
    return [text for texts in found.texts.values() for text in texts]


def print_whole_documents(labels: Sequence[str], folders: Sequence[Path], texts: list[str]) -> None:
    """Nats a token; `labels` name the runs in `folders`, those of a variant's seeds alike and in the order of the
    seeds. Differences are to the runs of the first label."""
    losses: dict[str, list[float]] = {}
    for label, folder in zip(labels, folders, strict=True):
        lm = load(folder / CURRENT, local_device(), "fp32")
        scores = [lm.score(text).token_nll for text in texts]
        loss = sum(nll.sum().item() for nll in scores) / sum(len(nll) for nll in scores)
        losses.setdefault(label, []).append(loss)
    first = losses[labels[0]]
    print(f"  {'':22} {'whole documents':>33}   less {labels[0]}'s, by seed")
    for label, own in losses.items():
        less = "  ".join(f"{loss - other:+.4f}" for loss, other in zip(own, first, strict=False))
        print(f"  {label:22} {statistics.mean(own):33.4f}   {less}")
