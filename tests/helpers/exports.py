"""Options of ModelConfig, by the architectures of other programs that such models have."""

ROTARY = {"positions": "rotary", "norm": "rms"}
KINDS = {
    "gpt2": {},
    "gpt2 relu2, untied": {"mlp": "squared_relu", "tie_embeddings": False, "dropout": 0.1},
    "apertus": {**ROTARY, "qk_norm": True, "mlp": "squared_relu", "bias": False},
    "apertus gelu, untied": {**ROTARY, "qk_norm": True, "bias": False, "tie_embeddings": False},
    "qwen3": {**ROTARY, "qk_norm": True, "mlp": "swiglu", "bias": False},
    "dots1": {**ROTARY, "qk_norm": True, "mlp": "swiglu", "bias": False, "num_experts": 4, "expert_hidden_size": 24},
    "dots1 two shared, of three": {
        **ROTARY,
        "qk_norm": True,
        "mlp": "swiglu",
        "bias": False,
        "num_experts": 5,
        "experts_per_token": 3,
        "shared_experts": 2,
        "expert_hidden_size": 40,
    },
    "arcee": {**ROTARY, "mlp": "squared_relu", "bias": False},
    "arcee biases": {**ROTARY, "mlp": "squared_relu", "dropout": 0.1},
    "llama": {**ROTARY, "mlp": "swiglu", "bias": False, "init_std": 0.1},
    "llama biases, untied": {**ROTARY, "mlp": "swiglu", "tie_embeddings": False},
}
