"""model/fitting/temperature.py: the weights that make a text likeliest are found."""

import pytest
import torch
import torch.nn.functional as F

from model import AuxiliaryConfig, LanguageModel, TransformerLM, load
from model.fitting.temperature import fit_temperature, fitted, places


def test_the_temperature_that_the_labels_were_drawn_with_is_found():
    torch.manual_seed(0)
    logits, described = torch.randn(40_000, 12) * 2, torch.rand(40_000, 2) * 3
    log_temperature = 0.2 - 0.3 * described[:, 0] + 0.1 * described[:, 1]
    labels = (logits / log_temperature.exp()[:, None]).softmax(-1).multinomial(1)[:, 0]
    found = fitted(logits, described, labels)
    assert (found.bias, found.entropy, found.value) == pytest.approx((0.2, -0.3, 0.1), abs=0.04)
    nll = [F.cross_entropy(logits / some.exp()[..., None], labels) for some in (log_temperature, torch.zeros(1))]
    assert nll[0] < nll[1]
    one = fitted(logits, described[:, :1], labels)
    assert one.entropy == pytest.approx(-0.3, abs=0.04) and one.value == 0.0


def test_places_are_drawn_from_all_rows(trained, token_ids):
    rows = [token_ids[:33], token_ids[100:120]]
    logits, described, labels = places(trained, rows)
    assert len(logits) == len(described) == len(labels) == 51
    torch.testing.assert_close(logits[:32], trained.logits(trained.hidden_states(rows[0][None, :-1])[0]))
    assert torch.equal(labels, torch.cat([rows[0][1:], rows[1][1:]]))
    assert 10 < len(places(trained, rows, 26)[0]) < 42


def test_a_model_writes_with_what_was_fitted_and_keeps_it(trained, tokenizer, text, tmp_path):
    """Here it has memorised the beginning of the text, so that it is far too sure of the rest."""
    lm = LanguageModel(trained, tokenizer.to_str(), 0)
    with pytest.raises(ValueError, match=r"call lm\.fit_temperature"):
        lm.generate("The", temperature="adaptive")
    fit = lm.fit_temperature([text[20_000:30_000]])
    assert fit == lm.fitted.temperature and fit.value == 0.0
    logits, _, labels = places(trained, [row for row in torch.tensor(lm.encode(text[20_000:30_000])).split(32)])
    temperatures = fit.tempering(None, 0.0)(logits, trained.final_norm.weight.expand(len(logits), -1))
    tempered = F.cross_entropy(logits / temperatures[:, None], labels)
    best = min(F.cross_entropy(logits / t, labels) for t in torch.linspace(0.5, 4, 36))
    assert tempered <= best + 1e-4 and tempered < F.cross_entropy(logits, labels)
    lm.save(tmp_path / "lm.pth")
    other = load(tmp_path / "lm.pth", device="cpu")
    assert other.fitted == lm.fitted
    settings = {"temperature": "adaptive", "temperature_offset": -0.5, "top_p": 0.95, "seed": 3}
    prompts = ["The", "A statement is"]
    together = lm.generate(prompts, 40, **settings)
    assert together == other.generate(prompts, 40, **settings) == [lm.generate(p, 40, **settings) for p in prompts]
    assert "".join(lm.stream("The", 40, **settings)) == together[0]
    assert lm.generate("The", 40, **{**settings, "temperature_offset": 0.5}) != together[0]
    # an offset that leaves nothing of the temperature: greedy
    lm.fitted = type(lm.fitted)(type(fit)(-3.0, 0.0))
    sure = lm.generate("The", 20, temperature="adaptive", temperature_offset=-3.0, top_p=0.1, seed=0)
    assert sure == lm.generate("The", 20, temperature=0)


def test_a_value_head_is_heeded(config, tokenizer, text):
    torch.manual_seed(0)
    core = AuxiliaryConfig(enable_value=True, value_horizons=(4,))
    model = TransformerLM(config.model_copy(update={"init_std": 0.2}), 500, core).eval()
    lm = LanguageModel(model, tokenizer.to_str(), 0)
    rows = [row for row in torch.tensor(lm.encode(text[:6000])).split(33) if len(row) > 1]
    assert fit_temperature(model, rows).value != 0.0
