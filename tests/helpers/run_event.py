"""The event that opens a run, as metrics.jsonl has it."""

from typing import Any

from engine.config import parse_preset

RUN: dict[str, Any] = {
    "event": "run",
    "preset": parse_preset(
        {"name": "tiny", "train": {"per_gpu_batch_size": 8, "accumulation_steps": 2}, "model": {"seq_length": 32}}
    ).model_dump(mode="json", by_alias=True),
    "derived": {
        "run": 3,
        "parameters": 15_300_000,
        "flops_per_token": 93_100_000,
        "vocab_size": 50_257,
        "zero_stage": 1,
        "global_batch_tokens": 512,
        "held_out_tokens": 499_000,
        "precision": "fp32",
        "compiled": False,
        "lanes": 8,
        "rows_per_pass": 8,
        "data_workers": 0,
        "world_size": 1,
        "token_budget": 100_000_000,
        "peak_flops": None,
        "bf16_instructions": None,
        "idle_gpus": 0,
    },
    "machine": "CPU, 2 threads, 8 GiB",
}
