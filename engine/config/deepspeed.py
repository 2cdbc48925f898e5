"""DeepSpeed's configuration for a run. Every default that matters is written out, because several have changed between
releases."""

from typing import Any

from engine.config.schema import TrainConfig
from sources.loading.shape import BatchShape


def engine_config(train: TrainConfig, shape: BatchShape, bf16: bool, on_gpu: bool = False) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a preset's `train` section, with its stage chosen, and the shape of its
    batches."""
    # One process has no other to divide moments or gradients with: stages 1 and 2 would copy its own, twice a step.
    assert train.zero_stage != "auto", "chosen by memory.choose_stage"
    divides = shape.world_size > 1 or train.zero_stage == 3 or train.offload_optimizer
    stage = train.zero_stage if divides else 0
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": shape.micro_batch_size,
        "gradient_accumulation_steps": shape.grad_accumulation_steps,
        "train_batch_size": shape.rows_per_step,
        # `step` clips the trunk and the lookahead core separately; DeepSpeed knows one norm only.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        # Modules that are listed as safe would send their gradients in bf16.
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": stage >= 2,
            "round_robin_gradients": False,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 10_000,
            # `squared_norms` computes it; a second time would cost some hundred kernels and a device synchronization.
            # Stages 0 and 3 do not compute it and refuse false, as offloading does.
            "compute_grad_norm": stage not in (1, 2) or train.offload_optimizer,
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
        # On by default, which synchronizes the device at every forward and step.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }
    if train.offload_optimizer:
        # Pinned: host memory that a GPU copies from by itself.
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
        config["zero_force_ds_cpu_optimizer"] = False  # torch's fused AdamW needs no compiler
    return config
