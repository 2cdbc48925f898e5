"""The events of a lineage of two runs as metrics.jsonl has them, with everything that the report shows."""

import copy
import math
from collections.abc import Iterator
from typing import Any

from tests.helpers.run_event import RUN

STEPS, TOKENS = 50, 20_000  # of a run; of a step
LONG_NAMES = [f"/data/corpora/2026/{name}/all-documents" for name in ("encyclopedia", "questions")]


def lineage(names: list[str] = LONG_NAMES, word: str = "words") -> Iterator[dict[str, Any]]:
    """Events in order; sources are called `names`, and every message and text holds `word`."""
    total = 0
    for run in (1, 2):
        begin = copy.deepcopy(RUN)
        begin["preset"]["name"] = f"tiny {word}" if word != "words" else "tiny"
        begin["derived"]["run"] = run
        begin["preset"]["data"]["sources"] = [{"type": "files", "path": name, "name": None} for name in names]
        if run == 2:
            yield _event("resume", total, step=STEPS, message=f"run 2 continues {word}")
        yield _event("run", total, **{key: value for key, value in begin.items() if key != "event"})
        for step in range(1, STEPS + 1):
            total += TOKENS
            yield _step(run, step, total, names)
            if step % 10 == 0:
                yield _evaluation(run, step, total, names, word)
            if step == 25:
                yield _event("spike", total, step=step, loss=9.5, grad_norm=3.0, threshold=7.25)
                yield _event("skip", total, step=step, reason=f"{word} loss", loss=None, in_a_row=1, total=1)
                weights = dict(zip(names, (3.0, 1.0), strict=True))
                yield _event("source", total, name="all", what="weights", message="shares", weights=weights)
        yield _event("source", total, name=names[0], what="notice", message=f"{word} was renamed")
        yield _event("save", total, path="checkpoints/lm_current.pth", tokens_total=total, step=step, seconds=1.0)
    yield _event("source", total, name=names[1], what="dropped", message=f"{word} is no longer read", reason="gone")
    yield _event("rollback", total, step=90, to_step=80, reason=f"{word} diverged")


def _event(kind: str, so_far: int, /, **values: Any) -> dict[str, Any]:
    return {"event": kind, "time": 1_790_000_000.0 + so_far / 1000, **values}


def _loss(total: int) -> float:
    return 2.5 + 6 * math.exp(-total / 300_000) + 0.1 * math.sin(total / 7_000)


def _step(run: int, step: int, total: int, names: list[str]) -> dict[str, Any]:
    loss = _loss(total)
    return _event(
        "step",
        total,
        step=(run - 1) * STEPS + step,
        tokens=step * TOKENS,
        tokens_total=total,
        share=step / STEPS,
        loss=loss,
        lr=3e-3 * (1 - step / STEPS) + 1e-5,
        grad_norm=1.0 + math.sin(step) ** 2,
        core_grad_norm=0.2,
        tokens_per_second=9_000.0 + 300 * math.sin(step),
        mfu=0.31,
        data_wait=0.02,
        eta_seconds=60.0,
        sources={names[0]: loss - 0.3, names[1]: loss + 0.5},
        auxiliary={"policy": loss / 4, "value": loss / 8, "latent_variance": 0.8},
        steps=1,
    )


def _evaluation(run: int, step: int, total: int, names: list[str], word: str) -> dict[str, Any]:
    ce = _loss(total) + 0.2
    passage = [
        {
            "token": f" {word}{place}",
            "guesses": [[[f" {word}", 0.5], [" other", 0.25]], [[" more", 0.1]]],
            "expected_nll": {"4": 2.0, "16": 2.0 + place / 10},
            "realised_nll": {"4": 2.5, "16": 3.0 - place / 10} if place < 15 else {"4": 2.5, "16": None},
        }
        for place in range(20)
    ]
    read = {"epoch": run, "filtered": {"too short": step, f"repeated {word}": 1}}
    return _event(
        "evaluation",
        total,
        step=(run - 1) * STEPS + step,
        tokens_total=total,
        ce=ce,
        perplexity=math.exp(ce),
        bits_per_byte=ce / 3,
        sources={names[0]: {"ce": ce - 0.4}, names[1]: {"ce": ce + 0.4}},
        tokens=1000,
        seconds=0.5,
        sample={"prompt": f"Once {word}", "text": f" upon a time at {total}"},
        passage=passage,
        data={
            names[0]: {"tokens": total * 3 // 4, "documents": 10 * step, **read},
            names[1]: {"tokens": total // 4, "documents": 3 * step, **read},
        },
    )
