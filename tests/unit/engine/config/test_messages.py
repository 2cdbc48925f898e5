"""What cannot be used in a preset is refused with the key and the remedy."""

import json

import pytest

from engine.config import parse_preset
from engine.config.messages import explain_json
from engine.errors import PresetError


def refusal(values: dict) -> str:
    with pytest.raises(PresetError) as caught:
        parse_preset({"name": "x", **values}, "p.json")
    assert caught.value.status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"train": {"per_gpu_batchsize": 3}},
            'per_gpu_batchsize: unknown key (did you mean "per_gpu_batch_size"?)',
        ),
        ({"trian": {}}, 'trian: unknown key (did you mean "train"?)'),
        ({"model": {"hidden_siz": 1}}, 'model.hidden_siz: unknown key (did you mean "hidden_size"?)'),
        ({"data": {"min_length": 1}}, 'data.min_length: unknown key (did you mean "min_text_length"?)'),
        ({"auxiliary": {"enable_polcy": True}}, 'auxiliary.enable_polcy: unknown key (did you mean "enable_policy"?)'),
        (
            {"data": {"sources": [{"type": "hf", "datset": "a/b"}]}},
            'data.sources.0.datset: unknown key (did you mean "dataset"?)',
        ),
        (
            {"data": {"tokenizer": {"train_bp": 300}}},
            'tokenizer.train_bp: unknown key (did you mean "train_bpe"?)',
        ),
        ({"data": {"tokenizer": ["gpt2"]}}, 'an object with keys of its own, not ["gpt2"].'),
        ({"data": {"tokenizer": "~nobody-here/x"}}, "data.tokenizer: the home folder in '~nobody-here/x' is not known"),
        ({"data": {"sources": [{"type": ["hf"]}]}}, "data.sources.0: a source has the unknown type \"['hf']\""),
        ({"model": {"hidden_size": 250}}, "model.hidden_size: 250 cannot be divided among num_heads 4"),
        ({"model": {"hidden_size": "big"}}, 'model.hidden_size: Input should be a valid integer, not "big".'),
        ({"data": {"sources": ["wikpedia"]}}, 'did you mean "wikipedia"?'),
        ({"data": {"sources": []}}, '"sources" is empty'),
        (
            {"data": {"sources": ["c4"], "mix_strategy": "weighted", "source_weights": {"c5": 2}}},
            'data: "source_weights" names "c5", which is no source here',
        ),
        ({"auxiliary": {"value_horizons": [8, 4]}}, "auxiliary.value_horizons: [8, 4] is not a list of ascending"),
        ({"train": {"zero_stage": 4}}, "train.zero_stage: Input should be 'auto', 0, 1, 2 or 3, not 4."),
        (
            {"train": {"log_to": ["wanbd"]}},
            "train.log_to.0: Input should be 'tensorboard', 'trackio' or 'wandb', not \"wanbd\".",
        ),
        (
            {"model": {"num_experts": 2, "experts_per_token": 3}},
            "model.experts_per_token: 3 experts cannot be chosen among num_experts 2; lower it or raise num_experts.",
        ),
        (
            {"model": {"num_experts": 2, "num_layers": 1, "moe_layers": "alternate"}},
            'model.moe_layers: The only block has no experts with "alternate"; use "all" or raise num_layers.',
        ),
        (
            {"train": {"optimizer": "muon", "muon_normalise_rows": True, "muon_soap": True}},
            "train.muon_soap: SOAP and muon_normalise_rows both scale Muon's updates; turn one of them off.",
        ),
        ({"train": {"expert_parallel_size": 2}}, "train.expert_parallel_size 2 does not divide model.num_experts 0"),
        (
            {"model": {"num_experts": 8}, "train": {"expert_parallel_size": 2, "zero_stage": 3}},
            "train.expert_parallel_size 2 needs ZeRO stage 1 or 2; set train.zero_stage 3 to one of them",
        ),
        (
            {
                "model": {"num_experts": 8},
                "train": {"expert_parallel_size": 2},
                "auxiliary": {"enable_value": True},
            },
            "train.expert_parallel_size 2 leaves the lookahead core no experts to read",
        ),
        ({"model": {"memory_tokens": 24}}, "model.memory_tokens 24 is no even divisor of model.seq_length 256"),
        ({"model": {"memory_tokens": 32, "num_experts": 4}}, "memory_tokens and model.num_experts cannot be combined"),
        (
            {"model": {"memory_tokens": 32}, "train": {"seq_length_schedule": [[0, 128], [0.5, 256]]}},
            "model.memory_tokens need rows of one length; leave out train.seq_length_schedule or set",
        ),
        (
            {"model": {"memory_tokens": 32}, "train": {"memory_segments": 3}},
            "train.per_gpu_batch_size 32 cannot be divided into rows of train.memory_segments 3 windows",
        ),
        ({"train": {"memory_segments": 4}}, "train.memory_segments has no effect without memory tokens"),
        (
            {"auxiliary": {"memory_reconstruction_weight": 0.1}},
            "auxiliary.memory_reconstruction_weight has no effect without memory tokens; set model.memory_tokens",
        ),
        (
            {"model": {"memory_tokens": 32}, "auxiliary": {"enable_value": True}},
            "The lookahead core cannot read a trunk with model.memory_tokens; set that to 0",
        ),
        ({"train": 7}, "train: Input should be an object"),
        ({"model": {"hidden_size": 10**30}}, "model.hidden_size: Input should be less than or equal to 1048576"),
        ({"train": {"seed": 2**64}}, "train.seed: Input should be less than 9223372036854775808"),
    ],
)
def test_refusals_name_the_key_and_the_remedy(values: dict, sentence: str):
    assert sentence in refusal(values)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{\n "a": 1\n "b": 2}', 'line 3, column 2 ("b": 2}): a comma is missing before it'),
        ('{"a" 1}', "line 1, column 6 (1}): a colon is missing before it"),
        (
            '{"a": 1, // mine\n "b": 2}',
            "line 1, column 10 (// mine): a key in double quotes must stand there",
        ),
        ("{'a': 1}", "line 1, column 2 ('a': 1}): a key in double quotes must stand there"),
        ('{"a": }', "line 1, column 7 (}): a value must stand there"),
        ('{"a": True}', "line 1, column 7 (True}): a value must stand there: a number, a text in double quotes, true"),
        ('{"a": "b}', 'line 1, column 7 ("b}): the double quotes that begin there have no end'),
        ('{"a": "b\nc"}', "line 1, column 9 (its end): a line ends within double quotes"),
        ('{"a": "C:\\d"}', "a backslash must be written twice"),
        ('{"a": 1}}', "line 1, column 9 (}): the preset has ended before it"),
        ('{"a": 1', "line 1, column 8 (its end): a comma is missing before it"),
        ("", "line 1, column 1 (its end): a value must stand there"),
    ],
)
def test_what_is_no_json_is_shown_with_its_place(text: str, sentence: str):
    with pytest.raises(ValueError) as refused:
        json.loads(text)
    assert sentence in explain_json(refused.value)


@pytest.mark.parametrize("text", ['{"a": 1,}', '{"a": [1,]}'])
def test_a_comma_too_many_is_named(text: str):
    """Python 3.13 says it in other words than those before."""
    with pytest.raises(ValueError) as refused:
        json.loads(text)
    said = explain_json(refused.value)
    assert any(part in said for part in ("a comma before }", "a comma must not stand", "a value must stand"))
