"""model/decoding/settings.py: refusals, and seeds of samples."""

import pytest
import torch

from model.decoding.settings import GenerationSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("plan", 1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("nan")),
        ("no_repeat_ngram", -1),
        ("seed", -1),
        ("seed", 2**70),
        ("seed", "x"),
        ("logprobs", 101),
        ("num_samples", 0),
        ("num_beams", 0),
        ("length_penalty", float("inf")),
        ("stop", ("",)),
        ("stop", (3,)),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is .*; give .*\.$"):
        GenerationSettings(**{name: value})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"top_pp": 0.5}, 'there is no setting "top_pp"; did you mean "top_p"?'),
        ({"colour": 1}, 'there is no setting "colour"; there are max_new_tokens, temperature'),
        ({"num_beams": 4}, "beam search draws nothing, so give temperature=0 too"),
        ({"num_beams": 2, "temperature": 0, "num_samples": 3}, "num_beams 2 finds no more than that"),
        ({"temperature": 0, "num_samples": 2}, "all texts would be the same; raise temperature or num_beams"),
        ({"length_penalty": 2.0}, "length_penalty has an effect with num_beams above 1 only"),
        ({"logits_processors": [3]}, "give functions"),
        ({"temperature": "adaptive", "num_beams": 2}, "beam search draws nothing"),
        ({"temperature_offset": 0.1}, 'temperature_offset has an effect with temperature "adaptive" only'),
        ({"temperature": "adaptive", "temperature_offset": 4.0}, "give a number from -3 to 3"),
        ({"plan": True}, "plan draws nothing; give temperature=0 too"),
        ({"plan": True, "temperature": "adaptive"}, "plan draws nothing; give temperature=0 too"),
        ({"plan": True, "temperature": 0, "num_beams": 2}, "plan and num_beams cannot be combined"),
        ({"plan": True, "temperature": 0, "logits_processors": [max]}, "plan and logits_processors cannot"),
        ({"plan": True, "temperature": 0, "speculate": "auto"}, "plan and speculate 'auto' cannot be combined"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(ValueError) as error:
        GenerationSettings.of(10, settings)
    assert sentence in str(error.value)


def test_a_stop_string_may_be_given_by_itself():
    assert GenerationSettings.of(5, {"stop": "ab"}).stop == ("ab",)
    assert GenerationSettings.of(5, {"stop": ["ab", "c"]}).stop == ("ab", "c")


def test_sample_j_is_what_seed_plus_j_gives():
    draws = [torch.rand(4, generator=GenerationSettings(seed=5).generator(2)) for _ in range(2)]
    draws.append(torch.rand(4, generator=GenerationSettings(seed=7).generator()))
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])
    assert not torch.equal(torch.rand(4, generator=GenerationSettings().generator()), draws[0])
    assert GenerationSettings(seed=2**63 - 1).generator(1).initial_seed() == 0
