"""model/fitting/drafter.py: a drafter learns from the trunk alone, and nothing else changes."""

import pytest
import torch

from model import AuxiliaryConfig, LanguageModel, TransformerLM, load
from model.fitting.drafter import add_drafter, fit_drafter, overlaps


def test_a_model_without_one_gets_a_drafter(trained, config, tokenizer, text, tmp_path):
    model = TransformerLM(config, trained.vocab_size)
    model.load_state_dict(trained.state_dict())
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    lm = LanguageModel(model.eval(), tokenizer.to_str(), 0, {"auxiliary": {"enable_value": False}})
    fit = lm.fit_drafter([text[:4000]], tokens=12_000)
    assert fit.tokens == pytest.approx(12_000, abs=128) and len(fit.overlap) == 3
    assert all(after > before + 0.05 for after, before in zip(fit.overlap, fit.overlap_before, strict=True))
    for name, parameter in before.items():
        assert torch.equal(parameter, model.state_dict()[name]), name
    greedy = lm.generate("The", 30, temperature=0)
    drafted = lm.generate("The", 30, temperature=0, speculate=True)
    assert drafted == greedy and sum(drafted.drafted) > 3
    lm.save(tmp_path / "lm.pth")
    other = load(tmp_path / "lm.pth", device="cpu")
    assert other.generate("The", 30, temperature=0, speculate=True).drafted == drafted.drafted
    assert other.preset["auxiliary"] == {"enable_value": False, "enable_draft": True, "draft_rollouts": 0}


def test_the_other_parts_of_a_core_stay(config):
    torch.manual_seed(0)
    core = AuxiliaryConfig(enable_policy=True, enable_value=True, value_horizons=(4,))
    model = TransformerLM(config, 500, core)
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    drafter, changed = add_drafter(model)
    assert model.latent.drafter is drafter and changed == {"enable_draft": True, "draft_rollouts": 0}
    assert all(torch.equal(parameter, model.state_dict()[name]) for name, parameter in before.items())
    assert add_drafter(model) == (drafter, {})


def test_training_goes_on_from_where_a_drafter_is(model_with_core, token_ids):
    rows = list(token_ids[:1100].split(32))
    first = fit_drafter(model_with_core, rows, 2000)
    more = fit_drafter(model_with_core, rows, 2000)
    assert more.overlap_before == pytest.approx(first.overlap) and first.auxiliary == {}


def test_an_overlap_is_that_of_the_distributions(model_with_core, token_ids):
    ids = token_ids[None, :32]
    model = model_with_core.eval()
    found = overlaps(model, model.latent.drafter, ids)
    assert len(found) == 3 and all(0 < share < 1 for share in found)
