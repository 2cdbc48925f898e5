"""What a run shows of its model after an evaluation: a few words that it writes, and a passage at which it looks ahead.

Both are of held-out text. Nothing here changes the run: no weight, no random number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import deepspeed
import torch

from engine.device import deepspeed_engine
from engine.device.ranks import Ranks
from model.config import AuxiliaryConfig, ModelConfig
from model.language_model import LanguageModel
from model.transformer import TransformerLM
from sources.rows.held_out import ValidationSet
from sources.rows.tokenizer import TextTokenizer

PROMPTS, PROMPT_TOKENS, SAMPLE_TOKENS = 8, 12, 48
PASSAGE_TOKENS, PASSAGE_BEFORE = 48, 16  # shown, and read before them


def show(
    engine: deepspeed.DeepSpeedEngine,
    config: ModelConfig,
    auxiliary: AuxiliaryConfig,
    held_out: ValidationSet,
    tokenizer: TextTokenizer,
    step: int,
    ranks: Ranks,
) -> dict[str, Any]:
    """`sample`: words after the beginning of a held-out document; `passage`: Ahead of each of some held-out tokens.

    All ranks must call it. None in place of either on the other ranks, where no text is fit, and, for the passage,
    where the model has no latent core.
    """
    with _whole(engine, config, auxiliary, tokenizer, ranks) as model:
        if model is None:
            return {"sample": None, "passage": None}
        writer = LanguageModel(model, tokenizer.to_json(), tokenizer.eos_id)
        return {"sample": _sample(writer, held_out, tokenizer, step), "passage": _passage(writer, held_out, step)}


@contextmanager
def _whole(
    engine: deepspeed.DeepSpeedEngine,
    config: ModelConfig,
    auxiliary: AuxiliaryConfig,
    tokenizer: TextTokenizer,
    ranks: Ranks,
) -> Iterator[TransformerLM | None]:
    """The model with all its weights, on rank 0."""
    if engine.zero_optimization_stage() < 3:
        yield engine.module if ranks.is_main else None
        return
    weights = deepspeed_engine.weights(engine, keep=ranks.is_main)
    if not ranks.is_main:
        yield None
        return
    with torch.random.fork_rng():  # stage 3's hooks take the weights away again after each layer, so it is a copy
        model = TransformerLM(config, tokenizer.vocab_size, auxiliary).to(ranks.device)
    model.load_state_dict(weights)
    yield model


def _sample(
    writer: LanguageModel, held_out: ValidationSet, tokenizer: TextTokenizer, step: int
) -> dict[str, str] | None:
    rows = held_out.input_ids[:: max(1, len(held_out.input_ids) // PROMPTS)][:PROMPTS]
    beginnings = [text for row in rows if (text := tokenizer.decode(row[1 : 1 + PROMPT_TOKENS].tolist())).strip()]
    if not beginnings:
        return None
    prompt = beginnings[step % len(beginnings)]
    text = writer.generate(prompt, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.9, seed=0)
    return {"prompt": prompt, "text": text}


def _passage(writer: LanguageModel, held_out: ValidationSet, step: int) -> list[dict[str, Any]] | None:
    """What is told of the longest piece of a document in one row; the rows take turns."""
    latent = writer.model.latent
    if latent is None:
        return None
    row = step % len(held_out.input_ids)
    segment_ids = held_out.segment_ids[row]
    pieces = segment_ids[segment_ids >= 0].bincount()
    columns = (segment_ids == pieces.argmax()).nonzero()[:, 0]
    said = writer.look_ahead_at(held_out.input_ids[row, columns].tolist(), latent.auxiliary.rollout_depth)
    first = min(PASSAGE_BEFORE, max(0, len(said) - PASSAGE_TOKENS))
    return [asdict(ahead) for ahead in said[first : first + PASSAGE_TOKENS]]
