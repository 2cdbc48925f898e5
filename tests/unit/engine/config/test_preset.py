import json
from pathlib import Path

import pytest

from engine.config.preset import CONFIGS, SCHEMA_FILE, load_preset, parse_preset, preset_files, write_schema
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


def refusal(values: dict) -> str:
    with pytest.raises(PresetError) as caught:
        parse_preset({"name": "x", **values}, "p.json")
    assert caught.value.status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train": {"per_gpu_batchsize": 3}}, "train.per_gpu_batchsize: unknown, did you mean per_gpu_batch_size?"),
        ({"trian": {}}, "trian: unknown, did you mean train?"),
        ({"model": {"hidden_siz": 1}}, "model.hidden_siz: unknown, did you mean hidden_size?"),
        ({"data": {"min_length": 1}}, "data.min_length: unknown, did you mean min_text_length?"),
        ({"auxiliary": {"enable_polcy": True}}, "auxiliary.enable_polcy: unknown, did you mean enable_policy?"),
        (
            {"data": {"sources": [{"type": "hf", "datset": "a/b"}]}},
            "data.sources.0.datset: unknown, did you mean dataset?",
        ),
        ({"data": {"tokenizer": {"train_bp": 300}}}, "data.tokenizer.train_bp: unknown, did you mean train_bpe?"),
        ({"data": {"tokenizer": ["gpt2"]}}, 'an object with keys of its own, not ["gpt2"].'),
        ({"data": {"tokenizer": "~nobody-here/x"}}, "data.tokenizer: the home folder in '~nobody-here/x' is not known"),
        ({"data": {"sources": [{"type": ["hf"]}]}}, "data.sources: a source has the unknown type \"['hf']\""),
        ({"model": {"hidden_size": 250}}, "model.hidden_size: 250 cannot be divided among num_heads 4"),
        ({"model": {"hidden_size": "big"}}, 'model.hidden_size: Input should be a valid integer, not "big".'),
        ({"data": {"sources": ["wikpedia"]}}, 'did you mean "wikipedia"?'),
        ({"data": {"sources": []}}, '"sources" is empty'),
        (
            {"data": {"sources": ["c4"], "mix_strategy": "weighted", "source_weights": {"c5": 2}}},
            'data: "source_weights" names "c5", which is no source here',
        ),
        ({"auxiliary": {"value_horizons": [8, 4]}}, "auxiliary.value_horizons: [8, 4] is not a list of ascending"),
        ({"train": {"zero_stage": 4}}, "train.zero_stage: Input should be 0, 1, 2 or 3, not 4."),
        ({"train": 7}, "train: Input should be an object"),
        ({"model": {"hidden_size": 10**30}}, "model.hidden_size: Input should be less than or equal to 1048576"),
        ({"train": {"seed": 2**64}}, "train.seed: Input should be less than 9223372036854775808"),
    ],
)
def test_refusals_name_the_key_and_the_remedy(values: dict, sentence: str):
    assert sentence in refusal(values)


def test_malformed_files_say_where(tmp_path: Path):
    path = tmp_path / "broken.json"
    path.write_text('{\n "name": "x",\n "train": {"seed": }\n}')
    with pytest.raises(PresetError, match=r"broken.json: not valid JSON at line 3, column 20"):
        load_preset(path)
    path.write_text("[]")
    with pytest.raises(PresetError, match="a preset is a JSON object"):
        load_preset(path)
    path.write_text("[" * 100_000)
    with pytest.raises(PresetError, match="nested too deeply"):
        load_preset(path)
    path.write_text('{"name": "x", "name": "y"}')
    with pytest.raises(PresetError, match="'name' stands twice"):
        load_preset(path)
    with pytest.raises(PresetError, match=r"no such preset; did you mean broken.json\?"):
        load_preset(tmp_path / "brokn.json")


def test_a_file_without_a_name_takes_its_own(tmp_path: Path):
    (tmp_path / "mine.json").write_text("{}")
    assert load_preset(tmp_path / "mine.json").name == "mine"


def test_the_schema_beside_the_presets_is_current(tmp_path: Path):
    write_schema(tmp_path / SCHEMA_FILE)
    written = json.loads((tmp_path / SCHEMA_FILE).read_text())
    assert json.loads((CONFIGS / SCHEMA_FILE).read_text()) == written, "run engine.config.preset.write_schema()"
