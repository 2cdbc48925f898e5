"""What an evaluation event shows of the model: a continuation that it writes, and its predictions in a passage.

Both are of validation text. Nothing here changes the run: no weight, no random number.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from engine.device import deepspeed_engine
from engine.device.deepspeed_engine import Engine
from engine.device.expert_parallel import spreads_experts
from engine.device.ranks import Ranks
from model.language_model import LanguageModel
from model.snapshot.tokenizer import TokenizerFailure
from model.transformer import TransformerLM
from sources.held_out import ValidationSet
from sources.rows.tokenizer import TextTokenizer, TokenizerError

PROMPTS, PROMPT_TOKENS, SAMPLE_TOKENS = 8, 12, 48
PASSAGE_TOKENS, PASSAGE_CONTEXT = 48, 16  # shown, and read before them


def show(engine: Engine, rows: ValidationSet, tokenizer: TextTokenizer, step: int, ranks: Ranks) -> dict[str, Any]:
    """Return `sample`, a prompt from a validation document and the model's continuation, and `passage`, the latent
    core's predictions at each of some validation tokens.

    All ranks must call it; the values are None on all but rank 0, where no text fits, and, for the passage, without a
    lookahead core.
    """
    with _whole_model(engine, ranks) as model:
        if model is None:
            return {"sample": None, "passage": None}
        writer = LanguageModel(model, tokenizer.to_json(), tokenizer.eos_id)
        try:
            return {"sample": _sample(writer, rows, tokenizer, step), "passage": _passage(writer, rows, step)}
        except (TokenizerError, TokenizerFailure):  # a text to look at is not worth a run
            return {"sample": None, "passage": None}


@contextmanager
def _whole_model(engine: Engine, ranks: Ranks) -> Iterator[TransformerLM | None]:
    """Yield the model with all its weights, on rank 0."""
    if engine.zero_optimization_stage() < 3 and not spreads_experts(engine.module):
        yield engine.module if ranks.is_main else None
        return
    weights = deepspeed_engine.weights(engine, keep=ranks.is_main)
    if not ranks.is_main:
        yield None
        return
    partitioned = engine.module
    with torch.random.fork_rng():  # stage 3's hooks release weights after each layer, so use a copy without hooks
        model = TransformerLM(partitioned.config, partitioned.vocab_size, partitioned.auxiliary).to(ranks.device)
    model.load_state_dict(weights)
    yield model


def _sample(writer: LanguageModel, rows: ValidationSet, tokenizer: TextTokenizer, step: int) -> dict[str, str] | None:
    first_rows = rows.input_ids[:: max(1, len(rows.input_ids) // PROMPTS)][:PROMPTS]
    prompts = [text for row in first_rows if (text := tokenizer.decode(row[1 : 1 + PROMPT_TOKENS].tolist())).strip()]
    if not prompts:
        return None
    prompt = prompts[step % len(prompts)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with short sequences it grows beyond one
        text = writer.generate(prompt, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.9, seed=0)
    return {"prompt": prompt, "text": str(text)}


def _passage(writer: LanguageModel, rows: ValidationSet, step: int) -> list[dict[str, Any]] | None:
    """Predictions in the longest piece of a document in one row; the rows take turns."""
    latent = writer.model.latent
    if latent is None:
        return None
    row = step % len(rows.input_ids)
    segment_ids = rows.segment_ids[row]
    longest = segment_ids[segment_ids >= 0].bincount().argmax()
    columns = (segment_ids == longest).nonzero()[:, 0]
    first = min(PASSAGE_CONTEXT, max(0, len(columns) - PASSAGE_TOKENS))
    shown = range(first, first + PASSAGE_TOKENS)
    tokens = rows.input_ids[row, columns].tolist()
    predictions = writer.look_ahead_ids(tokens, latent.auxiliary.rollout_depth, draft_after=shown)
    return [asdict(prediction) for prediction in predictions[first : first + PASSAGE_TOKENS]]
