"""model/export/model_card.py: figures and sources are the run's own, and nothing of this machine is in it."""

import json
import re
from dataclasses import replace

import pytest

from engine.config import load_preset, preset_files
from model.export.model_card import model_card, shown_name

SOURCES = [
    {"type": "hf", "dataset": "owner/texts", "config": "en", "split": "train", "name": None},
    {"type": "files", "path": "/home/somebody/notes", "name": None},
    {"type": "pdf", "path": "~/papers", "name": "papers"},
    {"type": "hf", "dataset": "./copies/texts", "name": None},
]
PRESET = {
    "name": "notes",
    "description": "a test",
    "train": {"optimizer": "muon", "learning_rate": 0.005},
    "data": {
        "sources": SOURCES,
        "mix_strategy": "weighted",
        "source_weights": {"owner/texts": 3.0, "/home/somebody/notes": 2.0},
        "tokenizer": "/home/somebody/tokenizer",
        "cache_dir": "/home/somebody/cache",
        "decontaminate": ["/home/somebody/questions"],
        "min_text_length": 50,
    },
}


@pytest.fixture
def card(config, snapshot):
    def made(preset=PRESET, licences=None, notes=(), **progress) -> str:
        whole = replace(snapshot, preset=preset, progress={**snapshot.progress, **progress})
        return model_card(whole, config, notes, licences or {}, "GPT2LMHeadModel")

    return made


def test_figures_are_the_runs_own(card, trained):
    text = card(evaluation={"ce": 3.25, "perplexity": 25.79, "bits_per_byte": 1.375}, tokens_total=61_440)
    assert "| Validation loss (nats per token) | 3.2500 |" in text and "| 25.79 |" in text and "| 1.3750 |" in text
    assert "| Tokens trained on | 61,440 |" in text
    padding = trained.padded_vocab_size - trained.vocab_size
    assert f"{trained.num_parameters() - padding * 32:,} parameters" in text


def test_sources_have_the_licences_that_are_known(card):
    text = card(licences={"owner/texts": "CC BY-SA 4.0"})
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| owner/texts | `owner/texts` `en` `train` | 3.0 | CC BY-SA 4.0 |" in rows
    assert "| files | local: files | 2.0 | not stated here: see the source |" in rows
    assert "| papers | local: pdf | 1.0 | not stated here: see the source |" in rows


def test_no_path_of_the_machine_is_told(card):
    text = card()
    assert "somebody" not in text and "copies" not in text and "~" not in text
    configuration = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    assert configuration["data"] == {"mix_strategy": "weighted", "min_text_length": 50}
    assert configuration["train"] == PRESET["train"] and configuration["model"]["hidden_size"] == 32


def test_what_a_snapshot_does_not_say_the_card_does_not(card):
    text = card(preset={}, evaluation=None, tokens_total=None, step=None)
    assert "Training figures: not stated by the run." in text and "Sources: not stated by the run." in text


def test_notes_stand_in_it(card):
    assert "\n\nExported without something.\n\n" in card(notes=("Exported without something.",))


def test_a_source_cannot_break_the_table(card):
    preset = {"data": {"sources": [{"type": "hf", "dataset": "a/b", "name": "x | y\n# z `q`"}]}}
    assert "| x / y # z 'q' | `a/b` | equal |" in card(preset=preset)


@pytest.mark.parametrize("path", preset_files(), ids=lambda path: path.stem)
def test_every_presets_sources_are_named(card, path):
    preset = load_preset(path).model_dump(mode="json", by_alias=True)
    text = card(preset=preset)
    for spec in load_preset(path).data.sources:
        assert f"| {spec.source_name} |" in text
    assert str(path.parent) not in text


@pytest.mark.parametrize(("spec", "name"), [({"type": "files", "name": "C:\\texts"}, "files"), ({"type": "x"}, "x")])
def test_a_name_that_is_a_path_is_not_shown(spec, name):
    assert shown_name(spec) == name
