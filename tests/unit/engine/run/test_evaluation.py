"""Validation figures against a plain computation, over micro-batches of which the last one is padded."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from engine.config import TrainConfig
from engine.device import deepspeed_engine
from engine.device.deepspeed_engine import Engine
from engine.device.ranks import join
from engine.run.evaluation import Evaluator
from model import ModelConfig, TransformerLM
from sources.held_out import ValidationSet
from sources.loading.loader import BatchShape

SHAPE = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, seq_length=8)
VOCABULARY, ROWS = 64, 5


@pytest.fixture(params=[0, 3])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    torch.manual_seed(0)
    model, train = TransformerLM(SHAPE, VOCABULARY), TrainConfig(zero_stage=request.param)
    opened = deepspeed_engine.initialize(model, train, BatchShape(2, 1, 8), join(), bf16=False)
    yield opened
    opened.destroy()


@pytest.fixture
def rows() -> ValidationSet:
    """Two rows of source 0, three of source 2, none of source 1; some labels are padding."""
    ids = torch.randint(VOCABULARY, (ROWS, 9), generator=torch.Generator().manual_seed(1))
    labels = ids[:, 1:].clone()
    labels[1, 5:] = labels[4, 2:] = -100
    segment_ids = torch.zeros(ROWS, 8, dtype=torch.int32)
    segment_ids[:, 4:] = 1
    segment_ids[labels == -100] = -1
    source_ids = torch.tensor([0, 0, 2, 2, 2])
    return ValidationSet(ids[:, :-1], labels, segment_ids, source_ids, {"a": 50, "b": 0, "c": 70}, {})


def evaluator(rows: ValidationSet, micro_batch_size: int, document_mask: bool = False) -> Evaluator:
    return Evaluator(rows, ["a", "b", "c"], micro_batch_size, document_mask, join())


def plain_losses(rows: ValidationSet, document_mask: bool) -> torch.Tensor:
    """(ROWS, 8): each label's negative log-likelihood in nats."""
    torch.manual_seed(0)
    model = TransformerLM(SHAPE, VOCABULARY)
    segment_ids = rows.segment_ids if document_mask else None
    with torch.no_grad():
        logits = model.logits(model.hidden_states(rows.input_ids, segment_ids=segment_ids))
    return F.cross_entropy(logits.flatten(0, 1), rows.labels.flatten(), reduction="none").view(ROWS, 8).double()


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("micro_batch_size", [2, 5, 8])
def test_figures_equal_a_plain_computation(engine, rows, micro_batch_size: int, document_mask: bool):
    found = evaluator(rows, micro_batch_size, document_mask).evaluate(engine)
    losses = plain_losses(rows, document_mask)
    parts = {"a": (losses[:2].sum().item(), 13, 50), "c": (losses[2:].sum().item(), 18, 70)}
    assert found.pop("seconds") > 0 and found.pop("tokens") == 31
    assert found.pop("sources") == {name: figures(*part) for name, part in parts.items()}
    assert found == figures(*map(sum, zip(*parts.values(), strict=True)))


def figures(nll: float, tokens: int, text_bytes: int) -> dict:
    ce = nll / tokens
    plain = {"ce": ce, "perplexity": math.exp(ce), "bits_per_byte": nll / math.log(2) / text_bytes}
    return {name: pytest.approx(figure, rel=1e-5) for name, figure in plain.items()}


def test_an_evaluation_changes_nothing(engine, rows):
    before = deepspeed_engine.weights(engine, keep=True)
    random_state = torch.get_rng_state()
    first, second = (evaluator(rows, 2).evaluate(engine)["ce"] for _ in range(2))
    assert first == second and engine.module.training
    assert torch.equal(torch.get_rng_state(), random_state)
    after = deepspeed_engine.weights(engine, keep=True)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_labels_behind_a_memory_are_judged_with_it_and_without(rows):
    """The segments go on over the border in the middle of the rows that have it there."""
    torch.manual_seed(0)
    shape = SHAPE.model_copy(update={"seq_length": 4, "memory_tokens": 2, "init_std": 0.2})
    model = TransformerLM(shape, VOCABULARY)
    engine = deepspeed_engine.initialize(
        model, TrainConfig(zero_stage=0), BatchShape(2, 1, 4, windows=2), join(), False
    )
    try:
        rows.segment_ids[:] = torch.where(rows.labels == -100, -1, 0)
        rows.segment_ids[0, 4:] = 1  # begins there
        found = Evaluator(rows, ["a", "b", "c"], 2, False, join(), window=4).evaluate(engine)
        with torch.no_grad():
            documents = torch.where(rows.segment_ids == 1, 1, rows.segment_ids)
            losses = model(rows.input_ids, rows.labels, documents=documents).token_nll
            alone = model(rows.input_ids.reshape(-1, 4), rows.labels.view(-1, 4)).token_nll.view(ROWS, 8)
    finally:
        engine.destroy()
    behind = torch.zeros(ROWS, 8, dtype=torch.bool)
    behind[1:4, 4:] = True
    behind[rows.labels == -100] = False
    assert found["memory"] == {
        "ce": pytest.approx(losses[behind].mean().item(), rel=1e-5),
        "ce_without": pytest.approx(alone[behind].mean().item(), rel=1e-5),
        "tokens": 9,
    }
    assert found["memory"]["ce"] != pytest.approx(found["memory"]["ce_without"], rel=1e-3)
    assert found["ce"] == pytest.approx(losses.sum().item() / 31, rel=1e-5)


def test_whoever_iterates_over_micro_batches_may_give_up(engine, rows):
    class GivenUp(Exception):
        pass

    def two(micro_batches):
        for number, micro_batch in enumerate(micro_batches):
            if number == 2:
                raise GivenUp
            yield micro_batch

    with pytest.raises(GivenUp):
        evaluator(rows, 2).evaluate(engine, two)
    assert evaluator(rows, 2).evaluate(engine)["tokens"] == 31


def test_tokens_are_labels_and_nothing_held_out_is_empty(rows):
    assert evaluator(rows, 2).num_tokens == 31 and not evaluator(rows, 2).is_empty
    nothing = ValidationSet(
        *(getattr(rows, n)[:0] for n in ("input_ids", "labels", "segment_ids", "source_ids")), {}, {}
    )
    assert evaluator(nothing, 2).is_empty and evaluator(nothing, 2).num_tokens == 0
