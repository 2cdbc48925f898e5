"""model/export/export.py: the name of the target decides, and what the export leaves out is said."""

from dataclasses import replace

import pytest

from model import ExportError, from_transformers, load
from model.export import export
from model.export.export import WITHOUT_LOOKAHEAD

APERTUS = {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu", "bias": False}


@pytest.mark.parametrize(("name", "architecture"), [("model", "ApertusForCausalLM"), ("model.gguf", "apertus")])
def test_the_lookahead_core_stays_behind_and_that_is_said(make, everything, tmp_path, name, architecture):
    lm = make(auxiliary=everything, **APERTUS)
    exported = lm.export(tmp_path / name)
    assert exported.notes == (WITHOUT_LOOKAHEAD,) and exported.architecture == architecture
    assert exported.summary() == f"{tmp_path / name}: exported as {architecture}. {WITHOUT_LOOKAHEAD}"
    if name == "model":
        assert WITHOUT_LOOKAHEAD in (tmp_path / name / "README.md").read_text()
        back = from_transformers(tmp_path / name, device="cpu")
        assert back.model.latent is None
        assert back.generate("The", temperature=0) == lm.generate("The", temperature=0)


def test_a_saved_model_keeps_what_the_card_needs(make, tmp_path):
    lm = make()
    lm.save(tmp_path / "lm.pth")
    loaded = load(tmp_path / "lm.pth", device="cpu")
    assert (loaded.preset, loaded.progress) == (lm.preset, lm.progress)
    loaded.export(tmp_path / "model", licences={"owner/texts": "MIT"})
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| owner/texts | `owner/texts` | equal | MIT |" in card and "| 61,440 |" in card and "3.5000" in card


@pytest.mark.parametrize("name", ["model", "model.gguf"])
def test_an_earlier_export_is_never_overwritten(make, tmp_path, name):
    lm = make()
    lm.export(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ExportError, match=r"and is never overwritten; give another name, or move it away\.$"):
        lm.export(tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_positions_that_were_extended_are_exported(make, token_ids, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    lm = make(seq_length=64)
    lm.model.extend_max_seq_len(128)
    lm.export(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        ours = lm.model.logits(lm.model.hidden_states(token_ids[None, :128]))
        torch.testing.assert_close(theirs(token_ids[None, :128]).logits, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["model", "model.gguf"])
def test_a_model_without_counterpart_leaves_nothing(make, tmp_path, name):
    with pytest.raises(ExportError, match=r"has no architecture for a model of .* needs bias False\.$"):
        make(**{**APERTUS, "bias": True}).export(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_a_configuration_of_another_version_is_refused(snapshot, tmp_path):
    with pytest.raises(ExportError, match="describes no model of this version"):
        export(replace(snapshot, config={**snapshot.config, "mlp": "new"}), tmp_path / "model")


def test_a_tokenizer_without_an_end_token_is_refused(make, tmp_path):
    lm = make()
    lm.eos_token_id = 499
    lm.tokenizer = type(lm.tokenizer).from_str(lm.tokenizer.to_str().replace('":499', '":501'))
    for name in ("model", "model.gguf"):
        with pytest.raises(ExportError, match="the end-of-text id 499 is no token of the tokenizer"):
            lm.export(tmp_path / name)
    assert not any(tmp_path.iterdir())
