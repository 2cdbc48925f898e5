"""Real text and a real tokenizer for the model's tests: the help topics every Python carries."""

from pydoc_data.topics import topics

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import LanguageModel, ModelConfig, TransformerLM
from model.snapshot.file import Snapshot

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
def config() -> ModelConfig:
    return ModelConfig(num_layers=2, num_heads=4, hidden_size=32, seq_length=32)


@pytest.fixture(scope="session")
def trained(config, tokenizer, token_ids) -> TransformerLM:
    """A small model that has learned 512 tokens of the topics nearly by heart; tests must not change it."""
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
