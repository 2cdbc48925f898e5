"""model/export/gguf_file.py: every tensor and number of the file, read back, is the model's.

tests/integration/test_exports.py and benchmarks/exports.py let other programs compute with such files.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from model import ExportError
from model.export.gguf_file import LEFT_F16, SOFTPLUS_IS_0, SOFTPLUS_IS_1, TANH_GELU, interleaved
from tests.helpers.exports import KINDS

LLAMA_CPP = {"gpt2", "apertus", "qwen3", "arcee", "llama", "llama biases, untied"}


def export(lm, path: Path, dtype: str = "float32") -> GGUFReader:
    lm.export(path, dtype=dtype)
    return GGUFReader(path)


def tensors(reader: GGUFReader) -> dict[str, torch.Tensor]:
    return {one.name: torch.tensor(dequantize(one.data, one.tensor_type)) for one in reader.tensors}


def expected(lm) -> dict[str, torch.Tensor]:
    """The tensors that a file should hold, written down without the tables that are tested."""
    config, weights = lm.model.config, lm.model.state_dict()
    found = {"token_embd.weight": weights["tokens.weight"][:500]}
    if config.positions == "learned":
        found["position_embd.weight"] = weights["positions.weight"]
    if not config.tie_embeddings:
        found["output.weight"] = weights["lm_head.weight"][:500]
    elif config.qk_norm and config.mlp == "squared_relu":
        found["output.weight"] = found["token_embd.weight"]
    for kind in ("weight", "bias"):
        if f"final_norm.{kind}" in weights:
            found[f"output_norm.{kind}"] = weights[f"final_norm.{kind}"]
        for layer in range(config.num_layers):
            ours, theirs = f"blocks.{layer}.", f"blk.{layer}."
            same = {"attention_norm": "attn_norm", "attention.out_proj": "attn_output", "mlp_norm": "ffn_norm"}
            same |= {"mlp.down": "ffn_down", "attention.query_norm": "attn_q_norm"}
            same |= {"attention.key_norm": "attn_k_norm"}
            for name, there in same.items():
                if f"{ours}{name}.{kind}" in weights:
                    found[f"{theirs}{there}.{kind}"] = weights[f"{ours}{name}.{kind}"]
            qkv, up = weights.get(f"{ours}attention.in_proj_{kind}"), weights.get(f"{ours}mlp.up.{kind}")
            if qkv is None or up is None:
                continue
            if config.positions == "learned":
                found[f"{theirs}attn_qkv.{kind}"] = qkv
            else:
                for name, part in zip("qkv", (qkv[:32], qkv[32:64], qkv[64:]), strict=True):
                    if name != "v" and not config.qk_norm:
                        part = interleaved(part, 2)
                    found[f"{theirs}attn_{name}.{kind}"] = part
            if config.mlp == "swiglu":
                found[f"{theirs}ffn_gate.{kind}"], found[f"{theirs}ffn_up.{kind}"] = up.chunk(2)
            else:
                found[f"{theirs}ffn_up.{kind}"] = up
    return found


def test_every_tensor_reads_back_to_the_bit(kind, lm, tmp_path):
    if kind not in LLAMA_CPP:
        with pytest.raises(ExportError, match=r"^llama\.cpp has no architecture for a model of "):
            lm.export(tmp_path / "model.gguf")
        assert not any(tmp_path.iterdir())
        return
    reader = export(lm, tmp_path / "model.gguf")
    found, asked = tensors(reader), expected(lm)
    assert found.keys() == asked.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in asked.items())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    name = fields["general.architecture"]
    assert name == kind.split()[0]
    said = {key.removeprefix(f"{name}."): value for key, value in fields.items() if key.startswith(f"{name}.")}
    inner = lm.model.blocks[0].mlp.down.in_features
    sizes = {"context_length": 1024, "embedding_length": 32, "block_count": 2, "vocab_size": 500}
    heads = {"attention.head_count": 2, "attention.head_count_kv": 2, "feed_forward_length": inner}
    assert sizes.items() | heads.items() <= said.items()
    if lm.model.config.positions == "rotary":
        assert said["rope.freq_base"] == 10_000 and said["rope.dimension_count"] == 16
        assert said["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    else:
        assert said["attention.layer_norm_epsilon"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("dtype", "kind", "apart"), [("float16", "F16", 2**-11), ("bfloat16", "BF16", 2**-8), ("q8_0", "Q8_0", 2**-7)]
)
def test_smaller_numbers_are_near(make, tmp_path, dtype, kind, apart):
    lm = make(**KINDS["qwen3"])
    reader = export(lm, tmp_path / "model.gguf", dtype)
    kinds = {one.name: one.tensor_type.name for one in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == kind
    assert {kinds[name] for name in kinds if name.endswith("norm.weight")} == {"F32"}
    found, asked = tensors(reader), expected(lm)
    for name, tensor in asked.items():
        assert (found[name] - tensor).abs().max() <= apart * tensor.abs().max(), name


def test_rows_that_q8_0_cannot_divide_are_float16(tokenizer, tmp_path):
    from model import LanguageModel, ModelConfig, TransformerLM

    config = ModelConfig(num_layers=1, num_heads=2, hidden_size=40, seq_length=16, **KINDS["apertus"])
    lm = LanguageModel(TransformerLM(config, 500), tokenizer.to_str(), 0)
    exported = lm.export(tmp_path / "model.gguf", dtype="q8_0")
    kinds = {one.name: one.tensor_type.name for one in GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "F16" and kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert exported.notes == (LEFT_F16,)


def test_pairs_i_and_half_become_neighbours():
    rows = torch.arange(12)[:, None]  # two heads of six
    assert interleaved(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_apertus_activation_becomes_squared_relu(make, tmp_path):
    """By llama.cpp's formula (op_xielu in ggml-cpu/unary-ops.cpp) with the file's numbers, in fp32 as there."""
    reader = export(make(**KINDS["apertus"]), tmp_path / "model.gguf")
    alpha_n, alpha_p, beta, eps = (
        np.float32(reader.fields[f"xielu.{name}"].contents()) for name in ("alpha_n", "alpha_p", "beta", "eps")
    )
    softplus = lambda number: np.log(np.float32(1) + np.exp(number))  # noqa: E731
    positive, negative = softplus(alpha_p), beta + softplus(alpha_n)
    x = np.linspace(-30, 30, 1001, dtype=np.float32)
    below = (np.expm1(np.minimum(x, eps)) - x) * negative + beta * x
    found = np.where(x > 0, positive * x * x + beta * x, below)
    assert np.array_equal(found, np.maximum(x, 0) ** 2)
    assert math.log1p(math.exp(SOFTPLUS_IS_1)) == 1 and math.log1p(math.exp(SOFTPLUS_IS_0)) == 0


def test_what_differs_in_llama_cpp_is_said(make, tmp_path):
    assert make().export(tmp_path / "a.gguf").notes == (TANH_GELU,)
    assert make(**KINDS["qwen3"]).export(tmp_path / "b.gguf").notes == ()


def test_a_number_beyond_float16_is_refused(make, tmp_path):
    lm = make()
    with torch.no_grad():
        lm.model.blocks[0].mlp.up.weight[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"blk\.0\.ffn_up\.weight does not fit into float16"):
        lm.export(tmp_path / "model.gguf", dtype="float16")
    assert not any(tmp_path.iterdir())


def test_without_gguf_a_sentence_says_what_to_install(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match=r"needs the package gguf; pip install 'forethought\[export\]'"):
        make().export(tmp_path / "model.gguf")


def test_an_unknown_dtype_is_named(make, tmp_path):
    with pytest.raises(ExportError, match="dtype 'q4' is none of float32, float16, bfloat16, q8_0"):
        make().export(tmp_path / "model.gguf", dtype="q4")
    assert GGMLQuantizationType.Q8_0.name == "Q8_0" and not any(tmp_path.iterdir())


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "yarn"])
def test_scaled_rotations_are_described(make, tmp_path, scaling: str):
    lm = make(**KINDS["llama"], rope_scaling=scaling, rope_original_length=256)
    reader = export(lm, tmp_path / "model.gguf")
    found = {
        name.removeprefix("llama.rope."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith("llama.rope.") and "dimension" not in name
    }
    base = pytest.approx(10_000 * 4 ** (16 / 14) if scaling == "ntk" else 10_000)
    scaled = {"scaling.type": scaling, "scaling.factor": 4.0} if scaling in ("linear", "yarn") else {}
    original = {"scaling.original_context_length": 256} if scaling == "yarn" else {}
    assert found == {"freq_base": base, **scaled, **original}
