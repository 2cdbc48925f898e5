"""What an evaluation shows of the model, and that it leaves no trace in the run."""

from collections.abc import Callable, Iterator

import pytest
import torch

from engine.config import Preset
from engine.device import deepspeed_engine
from engine.device.deepspeed_engine import Engine
from engine.device.ranks import join
from engine.run import samples
from engine.run.samples import PROMPT_TOKENS
from model import TransformerLM
from sources.held_out import ValidationSet, collect_validation_set, sample_training_texts
from sources.loading.loader import BatchShape
from sources.registry import open_sources
from sources.rows.tokenizer import TextTokenizer, train_bpe
from tests.helpers.look_ahead import ON


@pytest.fixture
def preset(tiny: Callable[..., Preset]) -> Preset:
    return tiny(auxiliary=ON)


@pytest.fixture
def text(preset: Preset) -> tuple[ValidationSet, TextTokenizer]:
    """Validation rows of real text, and the tokenizer that made them."""
    opened, data = open_sources(preset.data).sources, preset.data
    tokenizer = train_bpe(sample_training_texts(opened, data, 50_000), 300)
    return collect_validation_set(opened, data, tokenizer, seq_length=32, eval_tokens=2000), tokenizer


@pytest.fixture
def make(preset: Preset) -> Iterator[Callable[[int, bool], Engine]]:
    """Makes engines over the same first weights."""
    engines: list[Engine] = []

    def make_engine(stage: int, looks_ahead: bool = True) -> Engine:
        torch.manual_seed(0)
        model = TransformerLM(preset.model, 300, preset.auxiliary if looks_ahead else None)
        train = preset.train.model_copy(update={"zero_stage": stage})
        engines.append(deepspeed_engine.initialize(model, train, BatchShape(8, 2, 32), join(), bf16=False))
        return engines[-1]

    yield make_engine
    for engine in engines:
        engine.destroy()


@pytest.mark.parametrize("stage", [0, 3])
def test_a_sample_continues_a_validation_text(make, text, stage: int):
    rows, tokenizer = text
    prompts = {tokenizer.decode(row[1 : 1 + PROMPT_TOKENS].tolist()) for row in rows.input_ids}
    engine = make(stage)
    shown = [samples.show(engine, rows, tokenizer, step, join())["sample"] for step in range(3)]
    assert len({sample["prompt"] for sample in shown}) == 3 and {sample["prompt"] for sample in shown} <= prompts
    assert all(sample["text"] for sample in shown)


def test_a_passage_is_a_piece_of_one_document(make, text):
    rows, tokenizer = text
    whole = ["".join(tokenizer.decode([token]) for token in row.tolist()) for row in rows.input_ids]
    for step in (0, 1, len(rows.input_ids)):
        passage = samples.show(make(0), rows, tokenizer, step, join())["passage"]
        assert "".join(place["token"] for place in passage) in whole[step % len(whole)]
        assert all(len(place["guesses"]) == 1 + ON["rollout_depth"] for place in passage)
        assert all(list(place["expected_nll"]) == ON["value_horizons"] for place in passage)
        assert any(len(place["drafted"]) == 3 for place in passage)
        assert all(0 <= place["accepted"] <= len(place["drafted"]) for place in passage)


def test_without_a_core_there_is_no_passage(make, text):
    shown = samples.show(make(0, looks_ahead=False), *text, 0, join())
    assert shown["passage"] is None and shown["sample"]["text"]


def test_all_stages_show_the_same(make, text):
    assert samples.show(make(0), *text, 1, join()) == samples.show(make(3), *text, 1, join())


@pytest.mark.parametrize("stage", [0, 3])
def test_nothing_of_the_run_changes(make, text, stage: int):
    engine = make(stage)
    before, random_state = deepspeed_engine.weights(engine, keep=True), torch.get_rng_state()
    first, second = (samples.show(engine, *text, 5, join()) for _ in range(2))
    assert first == second and torch.equal(torch.get_rng_state(), random_state) and engine.module.training
    after = deepspeed_engine.weights(engine, keep=True)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_rows_without_a_prompt_give_no_sample(make, text):
    rows, tokenizer = text
    rows.input_ids.fill_(tokenizer.encode_batch([" "])[0][0].item())
    shown = samples.show(make(0), rows, tokenizer, 0, join())
    assert shown["sample"] is None and shown["passage"]
