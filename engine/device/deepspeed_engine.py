"""Preset -> DeepSpeed configuration -> engine, and the engine's state as plain tensors.

Every DeepSpeed default that matters is written out in `engine_config`, because several have changed between releases.
Weights stay fp32 and `torch_autocast` does the bf16 arithmetic, so a snapshot is fp32 as it stands and all stages
share one precision path. State is read and written per parameter name, in full, so that what one stage and world size
saved any other can continue.
"""

import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger, safe_get_full_optimizer_state, safe_set_full_optimizer_state
from torch import nn

from engine.checkpoint.state import MOMENTS, OptimizerState
from engine.config.preset import TrainConfig
from engine.device import machine
from engine.device.ranks import Ranks
from engine.optim.muon import Fragment, MuonAdamW
from engine.optim.optimizers import make_optimizer


def engine_config(train: TrainConfig, world_size: int, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for a preset's `train` section."""
    # One process has nobody to divide moments or gradients with: it would only copy its own, twice a step.
    stage = train.zero_stage if world_size > 1 or train.zero_stage == 3 else 0
    return {
        "train_micro_batch_size_per_gpu": train.per_gpu_batch_size,
        "gradient_accumulation_steps": train.accumulation_steps,
        "train_batch_size": train.per_gpu_batch_size * train.accumulation_steps * world_size,
        # `step` clips, trunk and latent core each by itself; DeepSpeed knows one norm only.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "torch_autocast": {
            "enabled": bf16,
            "dtype": "bfloat16",
            # Modules named here would send their gradients in bf16; none does.
            "lower_precision_safe_modules": [],
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": stage >= 2,
            "allgather_partitions": True,
            "round_robin_gradients": False,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 10_000,
            # `squared_norms` has taken it; a second time would cost some hundred kernels and a wait for the device.
            **({"compute_grad_norm": False} if stage in (1, 2) else {}),
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        # On by default, and then it synchronises the device at every forward pass and step.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }


def initialize(model: nn.Module, train: TrainConfig, ranks: Ranks, bf16: bool) -> deepspeed.DeepSpeedEngine:
    """The engine over `model`, whose weights are already those to start from."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    machine.keep_freed_memory(ranks.device)
    logger.addFilter(_is_news)
    # DeepSpeed moves the model itself, but only after it has made flat copies of parameters that stand elsewhere.
    model.to(ranks.device)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, train, bf16),
        config=engine_config(train, ranks.world_size, bf16),
        dist_init_required=False,
    )
    if ranks.world_size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # there is nothing to sum
    base = _base_optimizer(engine)
    if isinstance(base, MuonAdamW) and engine.zero_optimization_stage():
        base.fragments, base.sum_over_ranks = _fragments(engine, base, ranks), dist.all_reduce
    return engine


def _is_news(record: logging.LogRecord) -> bool:
    """Skipped steps are told of by the run itself, with their reason; DeepSpeed would call a spike non-finite. And it
    warns of every optimizer that is not its own."""
    message = record.getMessage()
    return "OVERFLOW! Skipping step" not in message and "untested optimizer" not in message


@contextlib.contextmanager
def rehearsed_step(engine: deepspeed.DeepSpeedEngine, passes: int) -> Iterator[None]:
    """The one step in the block has so many passes, at a learning rate of 0; then its moments are gone. Only for an
    engine whose optimizer has none yet."""
    set_learning_rate(engine, 0.0)
    engine.micro_steps = engine.gradient_accumulation_steps() - passes
    yield
    engine.micro_steps = 0
    _base_optimizer(engine).state.clear()


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, rate: float) -> None:
    """The trunk's; the latent core's is auxiliary.learning_rate_factor times it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def learning_rate(engine: deepspeed.DeepSpeedEngine) -> float:
    """Of the latest step."""
    return engine.optimizer.param_groups[0]["lr"]


class Gradients(NamedTuple):
    """This rank's gradients, or its shares of them, as the optimizer is about to read them."""

    trunk: list[torch.Tensor]
    core: list[torch.Tensor]  # the latent core's

    @classmethod
    def accumulated(cls, engine: deepspeed.DeepSpeedEngine) -> "Gradients":
        gradients = cls([], [])
        for group, own in _gradients(engine):
            gradients[group["core"]].extend(own)
        return gradients

    def squared_norms(self, device: torch.device) -> torch.Tensor:
        """(2,) fp64, on `device`, which nothing here waits for."""
        none = torch.zeros((), device=device)
        return torch.stack([nn.utils.get_total_norm(part) if part else none for part in self]).double().square()


class Norms(NamedTuple):
    """Of the gradients of all ranks, before clipping; NaN where they are not finite."""

    trunk: float
    core: float  # 0 without a latent core


def step(
    engine: deepspeed.DeepSpeedEngine, gradients: Gradients, squares: torch.Tensor, clip: float, ranks: Ranks
) -> Norms:
    """One optimizer step on the gradients accumulated, whose `squared_norms` are `squares`, on the CPU.

    The latent core's gradients are clipped by themselves, so that a core that is detached leaves the trunk as it would
    be without one; for the same reason they count as zeros where they alone are not finite. Where the trunk's are not,
    the step is skipped on all ranks: weights, moments and their step count stay as they are, and the gradients are
    gone.
    """
    # At stage 0 every rank has all gradients, else a share of them.
    sums = squares if engine.zero_optimization_stage() == 0 else ranks.sum_tensor(squares)
    norms = Norms(*(norm if math.isfinite(norm) else math.nan for norm in sums.sqrt().tolist()))
    if math.isnan(norms.trunk):
        discard(engine)
        return norms
    if math.isnan(norms.core) and gradients.core:
        torch._foreach_zero_(gradients.core)
    for part, norm in zip(gradients, norms, strict=True):
        if norm > clip:
            torch._foreach_mul_(part, clip / norm)
    engine.step()
    return norms


def _gradients(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[dict[str, Any], list[torch.Tensor]]]:
    """What Gradients holds, by the optimizer's groups; zeros that fill a partition up may be among it."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        for group in optimizer.param_groups:
            yield group, [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        return
    for number, gradients in optimizer.averaged_gradients.items():
        yield optimizer.param_groups[optimizer.sub_group_to_group_id[number] if stage == 3 else number], gradients


def keep_gradients(engine: deepspeed.DeepSpeedEngine) -> None:
    """From here on the gradients stay where they are and every pass adds to them, for an engine at stage 0."""
    parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
    kept = [torch.zeros_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
    engine.zero_grad = functools.partial(torch._foreach_zero_, kept)


def discard(engine: deepspeed.DeepSpeedEngine) -> None:
    """Ends an accumulation without a step: the gradients are gone, everything else is as it was before them."""
    if engine.zero_optimization_stage() == 0:
        engine.zero_grad()
        engine.micro_steps += 1
        return
    # DeepSpeed skips a step by itself, with all that belongs to it, when a gradient is not finite; so one is made so.
    gradients = list(itertools.chain.from_iterable(engine.optimizer.averaged_gradients.values()))
    for gradient in gradients:
        gradient.fill_(torch.nan)
    engine.optimizer.check_grad_overflow = True  # stages 1 and 2 do not look unless they are told to
    engine.step()
    engine.optimizer.check_grad_overflow = False
    assert not engine.was_step_applied()
    torch._foreach_zero_(gradients)  # stage 3 keeps them, and never writes what fills a partition up


def gathered_parameters(engine: deepspeed.DeepSpeedEngine):
    """A context in which every rank sees whole parameters; stage 3 fetches them, the other stages have them."""
    return deepspeed.zero.GatheredParameters(
        list(engine.module.parameters()), enabled=engine.zero_optimization_stage() == 3
    )


def weights(engine: deepspeed.DeepSpeedEngine, keep: bool) -> dict[str, torch.Tensor]:
    """The model's state dict, in full, as fp32 CPU copies. All ranks must call it; those that do not `keep` get {}."""
    with gathered_parameters(engine):
        if not keep:
            return {}
        return {name: tensor.detach().cpu().clone() for name, tensor in engine.module.state_dict().items()}


def optimizer_state(engine: deepspeed.DeepSpeedEngine, keep: bool) -> OptimizerState:
    """The optimizer's moments by parameter name, in full, on the CPU, and its step count.

    All ranks must call it; those that do not `keep` get nothing to hold. There are no moments before the first step.
    """
    base = _base_optimizer(engine)
    steps = [int(state["step"]) for state in base.state.values() if "step" in state]
    if not steps:
        return {"step": 0, "moments": {}}
    _link_moments(engine)
    moments = {}
    kept = _kept_moments(engine)
    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 0:
            state = {key: base.state[parameter][key] for key in kept[name]}
        else:
            state = {key: safe_get_full_optimizer_state(parameter, key) for key in kept[name]}
        if keep:
            moments[name] = {key: tensor.detach().float().cpu().clone() for key, tensor in state.items()}
    return {"step": steps[0], "moments": moments}


def load_optimizer_state(engine: deepspeed.DeepSpeedEngine, state: OptimizerState | None, ranks: Ranks) -> list[str]:
    """Gives the moments that rank 0 has read to every rank's optimizer, whatever stage and world wrote them.

    Returns the names of parameters for which the state has nothing; their moments begin at zero.
    """
    step_count, known = ranks.broadcast_json(_shapes(state) if ranks.is_main else None)
    if step_count == 0:
        return []
    base = _base_optimizer(engine)
    stage = engine.zero_optimization_stage()
    # Optimizers make their state at the first step; partitions that have none yet get zeros to write into.
    for partition in _partitions(engine, base):
        keys = MOMENTS[:1] if isinstance(base, MuonAdamW) and partition in base.fragments else MOMENTS
        zeros = {key: torch.zeros_like(partition) for key in keys}
        base.state[partition] = {"step": torch.tensor(float(step_count), device=_step_device(partition)), **zeros}
    _link_moments(engine)
    missing = []
    kept = _kept_moments(engine)
    for name, parameter in engine.module.named_parameters():
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        if any(known.get(name, {}).get(key) != shape for key in kept[name]):
            missing.append(name)
            continue
        for key in kept[name]:
            full = state["moments"][name][key] if ranks.is_main else torch.empty(shape)
            full = ranks.broadcast_tensor(full.contiguous()).to(ranks.device)
            if stage == 0:
                base.state[parameter][key].copy_(full)
            else:
                safe_set_full_optimizer_state(parameter, full, key)
    return missing


def _shapes(state: OptimizerState | None) -> tuple[int, dict[str, list[int]]]:
    if state is None:
        return 0, {}
    moments = state["moments"].items()
    return state["step"], {name: {key: list(moment.shape) for key, moment in own.items()} for name, own in moments}


def _kept_moments(engine: deepspeed.DeepSpeedEngine) -> dict[str, tuple[str, ...]]:
    """Which of MOMENTS the optimizer keeps of each parameter; Muon keeps the first."""
    base = _base_optimizer(engine)
    of_muon = base.matrices if isinstance(base, MuonAdamW) else ()
    return {name: MOMENTS[:1] if name in of_muon else MOMENTS for name, _ in engine.module.named_parameters()}


def _fragments(engine: deepspeed.DeepSpeedEngine, base: MuonAdamW, ranks: Ranks) -> dict[torch.Tensor, list[Fragment]]:
    """What is in the tensors that `base` steps with Muon on this rank."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    matrices = {p: base.matrices[name] for name, p in engine.module.named_parameters() if name in base.matrices}
    flats = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    groups = optimizer.fp16_groups if stage == 3 else optimizer.bit16_groups
    found = {}
    for flat, parameters in zip(flats, groups, strict=True):
        if parameters[0] not in matrices:
            continue
        places, end = [], 0  # of each parameter: where in it this rank's part begins, where in `flat`, how long it is
        for parameter in parameters:
            if stage == 3:
                size = parameter.partition_numel()
                start = ranks.rank * size
                places.append((start, end, min(size, max(0, parameter.ds_numel - start))))
                end += size
            elif parameter._hp_mapping is None:
                places.append((0, 0, 0))
            else:
                own, flat_place = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                places.append((own.start, flat_place.start, own.numel))
        sizes = ranks.gather_json([numel for *_, numel in places])
        shared = [sum(numel > 0 for numel in of_ranks) > 1 for of_ranks in zip(*sizes, strict=True)]
        found[flat] = [Fragment(matrices[p], *place, s) for p, place, s in zip(parameters, places, shared, strict=True)]
    return found


def _base_optimizer(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    """torch's optimizer inside DeepSpeed's wrapper; stage 0 has no wrapper."""
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _partitions(engine: deepspeed.DeepSpeedEngine, base: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors that key the base optimizer's state on this rank."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [tensor for group in base.param_groups for tensor in group["params"]]


def _link_moments(engine: deepspeed.DeepSpeedEngine) -> None:
    """Maps each parameter to its slice of the moments, for stages 1 and 2.

    DeepSpeed 0.19.8 does it after the first parameter group's first step, when the other groups have no moments yet,
    and then takes it for done.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _step_device(partition: torch.Tensor) -> torch.device:
    """Fused AdamW keeps its step count beside the parameters."""
    return partition.device
