"""The schema of presets: the shipped files fit it, and it fits the reference."""

import json
from pathlib import Path

import pytest

from engine.config import CONFIGS, load_preset, parse_preset, preset_files, write_schema
from engine.config.reading import SCHEMA_FILE
from engine.errors import PresetError

REFERENCE_KEYS = {
    "model": ["hidden_size", "num_layers", "num_heads", "seq_length"],
    "train": ["per_gpu_batch_size", "accumulation_steps", "eval_tokens", "train_tokens"],
    "data": ["sources", "mix_strategy", "source_weights", "min_text_length"],
    "auxiliary": [
        *("enable_policy", "enable_value", "enable_dynamics", "enable_span_contrastive", "policy_kl_weight"),
        *("value_weight", "dynamics_weight", "span_contrastive_weight", "span_mask_fraction"),
        *("span_contrastive_temperature", "span_l2_normalize", "enable_adaptive_sources"),
        *("adaptive_interval_tokens", "adaptive_min_weight", "adaptive_max_weight", "adaptive_smoothing"),
    ],
}


@pytest.mark.parametrize("path", preset_files(), ids=lambda path: path.stem)
def test_shipped_presets_parse(path: Path):
    preset = load_preset(path)
    assert path.stem.endswith(preset.name)
    assert preset.description


def test_the_reference_preset_is_the_plain_baseline():
    preset = load_preset(CONFIGS / "03_reference.json")
    assert preset.model.model_dump(include=set(REFERENCE_KEYS["model"])) == {
        "hidden_size": 256,
        "num_layers": 3,
        "num_heads": 4,
        "seq_length": 256,
    }
    assert (preset.train.per_gpu_batch_size, preset.train.accumulation_steps) == (128, 4)
    assert preset.data.tokenizer == "gpt2"


def test_every_key_of_the_reference_preset_is_accepted():
    defaults = parse_preset({"name": "x"}).model_dump()
    values = {section: {key: defaults[section][key] for key in keys} for section, keys in REFERENCE_KEYS.items()}
    values["train"]["train_tokens"] = 5
    assert parse_preset({"name": "x", **values}).train.train_tokens == 5
    assert not any(defaults["auxiliary"][key] for key in REFERENCE_KEYS["auxiliary"] if key.startswith("enable_"))


def test_presets_are_frozen():
    preset = parse_preset({"name": "x"})
    with pytest.raises(ValueError, match="frozen"):
        preset.train.seed = 3


def test_the_schema_beside_the_presets_is_current(tmp_path: Path):
    write_schema(tmp_path / SCHEMA_FILE)
    written = json.loads((tmp_path / SCHEMA_FILE).read_text())
    assert json.loads((CONFIGS / SCHEMA_FILE).read_text()) == written, "run engine.config.write_schema()"


@pytest.mark.parametrize(
    ("key", "value", "off"),
    [("value_embeddings", "tables", '"none"'), ("logit_softcap", 15.0, "0.0"), ("embedding_size", 64, "0")],
)
def test_the_lookahead_core_is_refused_beside_what_it_cannot_read(key, value, off):
    values = {"name": "n", "model": {key: value}}
    assert getattr(parse_preset(values).model, key) == value
    with pytest.raises(PresetError, match=f"model.{key}; set that to {off} or turn"):
        parse_preset(values | {"auxiliary": {"enable_value": True}})


def test_a_tied_head_cannot_begin_at_zero():
    values = {"name": "n", "model": {"head_init": "zero", "tie_embeddings": False}}
    assert parse_preset(values).model.head_init == "zero"
    values["model"].pop("tie_embeddings")
    with pytest.raises(PresetError, match="zero needs a head of its own; set tie_embeddings to false"):
        parse_preset(values)


def test_what_belongs_to_muon_is_refused_beside_adamw():
    values = {"name": "n", "train": {"optimizer": "muon", "cautious_weight_decay": True}}
    assert parse_preset(values).train.cautious_weight_decay
    values["train"].pop("optimizer")
    with pytest.raises(PresetError, match=r'needs Muon; set train.optimizer to "muon" or leave it out'):
        parse_preset(values)


def test_doublings_of_the_batch_ascend_and_stand_alone():
    values = {"name": "n", "train": {"batch_doublings": [0.2, 0.5]}}
    assert parse_preset(values).train.batch_doublings == (0.2, 0.5)
    with pytest.raises(PresetError, match=r"count steps of one size; leave out train\.batch_doublings"):
        parse_preset(values | {"auxiliary": {"enable_adaptive_sources": True}, "data": {"mix_strategy": "weighted"}})
    with pytest.raises(PresetError, match="not a list of ascending shares"):
        parse_preset(values | {"train": {"batch_doublings": [0.5, 0.2]}})


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"offload_optimizer": True, "zero_stage": 3}},
        {"train": {"offload_optimizer": True, "zero_stage": 0}},
        {"train": {"offload_optimizer": True, "optimizer": "muon"}},
        {"train": {"offload_optimizer": True}, "auxiliary": {"enable_value": True}},
    ],
)
def test_what_cannot_be_offloaded_is_refused_with_the_remedy(sections: dict):
    with pytest.raises(PresetError, match=r"set train\.offload_optimizer to false"):
        parse_preset({"name": "x", **sections})
    assert parse_preset({"name": "x", "train": {"offload_optimizer": True, "zero_stage": "auto"}})


def test_a_schedule_of_lengths_ascends_to_the_models_own():
    values = {"name": "n", "model": {"seq_length": 1024}, "train": {"seq_length_schedule": [[0, 256], [0.85, 1024]]}}
    preset = parse_preset(values)
    assert preset.train.seq_length_schedule == ((0, 256), (0.85, 1024)) and preset.train.shortest_rows == 256
    for schedule, problem in (
        ([[0.1, 256], [0.85, 1024]], "does not begin at share 0"),
        ([[0, 1024], [0.85, 256]], "does not begin at share 0 with the shortest rows"),
        ([[0, 256], [1.0, 1024]], "ascend to a share below 1"),
        ([[0, 300], [0.85, 1024]], "rows of 300 tokens do not divide"),
        ([[0, 128], [0.85, 512]], "ends with rows of 512 tokens, and model.seq_length is 1024"),
    ):
        with pytest.raises(PresetError, match=problem):
            parse_preset(values | {"train": {"seq_length_schedule": schedule}})


def test_the_shortest_rows_must_have_room_for_the_core():
    values = {"name": "n", "model": {"seq_length": 64}, "auxiliary": {"enable_value": True, "value_horizons": [64]}}
    assert parse_preset(values)
    with pytest.raises(PresetError, match=r"needs rows of 32 tokens, and train\.seq_length_schedule begins with 16"):
        parse_preset(values | {"train": {"seq_length_schedule": [[0, 16], [0.5, 64]]}})


def test_long_texts_need_a_schedule():
    values = {"name": "n", "data": {"long_text_length": 2000}}
    with pytest.raises(PresetError, match=r"long_text_length has no effect without a train\.seq_length_schedule"):
        parse_preset(values)
    assert parse_preset(values | {"train": {"seq_length_schedule": [[0, 64], [0.5, 256]]}})
