"""What a run says about text that it will read very often."""

from pathlib import Path

import pytest

from engine.checks.epochs import advise_on_epochs
from sources.config import DataConfig
from sources.registry import open_sources
from sources.rows.tokenizer import TextTokenizer, train_bpe
from tests.helpers.text import write_topics


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, every in (("notes", 20), ("papers", 2)):
        found[name] = write_topics(tmp_path_factory.mktemp(name), every)
    return found


@pytest.fixture(scope="module")
def tokenizer(folders: dict[str, Path]) -> TextTokenizer:
    return train_bpe((path.read_text() for path in folders["papers"].iterdir()), 512)


def config(folders: dict[str, Path], **values) -> DataConfig:
    sources = [{"type": "files", "path": str(path), "name": name} for name, path in folders.items()]
    return DataConfig.model_validate({"sources": sources, **values})


def advice(data: DataConfig, tokenizer: TextTokenizer, token_budget: int, later: bool = False) -> str | None:
    opened = open_sources(data)
    if later:  # as at a later start, which does not read small sources again
        opened = open_sources(data, opened.pins())
        assert not opened.amounts
    return advise_on_epochs(data, opened, tokenizer, token_budget)


def tokens_of(folder: Path, tokenizer: TextTokenizer) -> int:
    return sum(len(ids) for ids in tokenizer.encode_batch([path.read_text() for path in folder.iterdir()]))


def epochs_said(sentence: str, name: str) -> int:
    return int(sentence.split(f"{name} (about ")[1].split(") ")[1].split(" times")[0].replace(",", ""))


@pytest.mark.parametrize("later", [False, True], ids=["first start", "later start"])
def test_the_number_of_epochs_is_right(folders, tokenizer, later: bool):
    budget = 100_000_000
    sentence = advice(config(folders), tokenizer, budget, later)
    assert sentence is not None and sentence.endswith("Add text, or expect the model to memorise it.")
    for name, folder in folders.items():  # each is half of the text that is read
        assert epochs_said(sentence, name) == pytest.approx(budget / 2 / tokens_of(folder, tokenizer), rel=0.2)


def test_weights_count(folders, tokenizer):
    weights = {"mix_strategy": "weighted", "source_weights": {"notes": 1, "papers": 9}}
    sentence = advice(config(folders, **weights), tokenizer, 10_000_000)
    assert epochs_said(sentence, "notes") == pytest.approx(1e6 / tokens_of(folders["notes"], tokenizer), rel=0.2)


def test_one_after_the_other_all_are_read_equally_often(folders, tokenizer):
    sentence = advice(config(folders, mix_strategy="sequential"), tokenizer, 10_000_000)
    assert epochs_said(sentence, "notes") == epochs_said(sentence, "papers")


def test_four_epochs_are_not_worth_a_word(folders, tokenizer):
    only = {"papers": folders["papers"]}
    tokens = tokens_of(folders["papers"], tokenizer)
    assert advice(config(only), tokenizer, 3 * tokens) is None
    assert "papers" in advice(config(only), tokenizer, 6 * tokens)
