"""Real text, a real tokenizer and small models: the text is the help topics that every Python carries."""

from collections.abc import Callable
from pydoc_data.topics import topics

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import AuxiliaryConfig, LanguageModel, ModelConfig, TransformerLM
from model.snapshot import Snapshot

EOS = 0


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text() -> str:
    return "\n".join(topics[name] for name in sorted(topics))


@pytest.fixture(scope="session")
def tokenizer(text) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def token_ids(text, tokenizer) -> torch.Tensor:
    return torch.tensor(tokenizer.encode(text[:5_000]).ids)


@pytest.fixture(scope="session")
def pack(token_ids) -> Callable:
    """Rows of 32 tokens by the lengths of their segments -> (input_ids, labels, segment_ids) of the rows, the rest of
    which is padding; and (input_ids, labels) of the same segments, one a row."""

    def packed(rows: list[list[int]]):
        input_ids, labels = torch.zeros(2, len(rows), 32, dtype=torch.int64)
        labels.fill_(-100)
        segment_ids = torch.full((len(rows), 32), -1, dtype=torch.int32)
        alone_ids, alone_labels = torch.zeros(2, sum(map(len, rows)), 32, dtype=torch.int64)
        alone_labels.fill_(-100)
        taken = number = 0
        for row, lengths in enumerate(rows):
            column = 0
            for segment, length in enumerate(lengths):
                text, place = token_ids[taken : taken + length + 1], slice(column, column + length)
                input_ids[row, place], labels[row, place], segment_ids[row, place] = text[:-1], text[1:], segment
                alone_ids[number, :length], alone_labels[number, :length] = text[:-1], text[1:]
                taken, number, column = taken + length, number + 1, column + length
        return (input_ids, labels, segment_ids), (alone_ids, alone_labels)

    return packed


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return ModelConfig(num_layers=2, num_heads=4, hidden_size=32, seq_length=32)


@pytest.fixture(scope="session")
def trained(config, tokenizer, token_ids) -> TransformerLM:
    """A small model that has nearly memorised 512 tokens of the topics; tests must not change it."""
    torch.manual_seed(0)
    model = TransformerLM(config, tokenizer.get_vocab_size())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    input_ids, labels = token_ids[:512].view(16, 32), token_ids[1:513].view(16, 32)
    for _ in range(150):
        loss = model(input_ids, labels).loss_sum / labels.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def language_model(trained, tokenizer) -> LanguageModel:
    return LanguageModel(trained, tokenizer.to_str(), EOS)


@pytest.fixture
def snapshot(trained, tokenizer) -> Snapshot:
    config = {**trained.config.model_dump(), "vocab_size": trained.vocab_size, "eos_token_id": EOS}
    progress = {"run": 0, "step": 120, "tokens_total": 61_440, "evaluation": {"ce": 3.5}}
    return Snapshot(trained.state_dict(), config, tokenizer.to_str(), {"name": "small"}, progress)


@pytest.fixture(scope="session")
def everything() -> AuxiliaryConfig:
    """Every part of the lookahead core, attached to the trunk, without warm-up."""
    return AuxiliaryConfig(
        enable_policy=True,
        enable_value=True,
        enable_dynamics=True,
        enable_span_contrastive=True,
        enable_draft=True,
        draft_rollouts=2,
        policy_detach_trunk=False,
        dynamics_detach_trunk=False,
        span_contrastive_detach_trunk=False,
        auxiliary_warmup_fraction=0.0,
        rollout_depth=3,
        rollout_row_fraction=0.75,
        policy_position_fraction=0.25,
        value_horizons=(4, 16),
        span_length=4,
        span_mask_fraction=0.5,
    )


@pytest.fixture
def model_with_core(config, everything) -> TransformerLM:
    """Untrained, with weights so large that every part matters."""
    torch.manual_seed(0)
    return TransformerLM(config.model_copy(update={"init_std": 0.2}), 500, everything)
