"""The optimizer's state as plain tensors, in full and by parameter name: any ZeRO stage and world size continues it."""

from typing import Any

import torch

from engine.checkpoint.state import MOMENTS, OptimizerState
from engine.device.deepspeed_engine import Engine, base_optimizer, get_full_state, set_full_state
from engine.device.ranks import Ranks
from engine.optim.muon import MuonAdamW


def optimizer_state(engine: Engine, keep: bool) -> OptimizerState:
    """Return the optimizer's full moments by parameter name, on the CPU, and its step count (0: no moments yet).

    All ranks must call it; those without `keep` get no moments.
    """
    base = base_optimizer(engine)
    steps = [int(state["step"]) for state in base.state.values() if "step" in state]
    if not steps:
        return {"step": 0, "moments": {}}
    _link_moments(engine)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    kept = _kept_moments(engine)
    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 0:
            state: dict[str, Any] = {key: base.state[parameter][key] for key in kept[name]}
        else:
            state = {key: get_full_state(parameter, key) for key in kept[name]}
        if keep:
            moments[name] = {key: tensor.detach().float().cpu().clone() for key, tensor in state.items()}
    return {"step": steps[0], "moments": moments}


def load_optimizer_state(engine: Engine, state: OptimizerState | None, ranks: Ranks) -> list[str]:
    """Load rank 0's `state` into every rank's optimizer, whichever stage and world size saved it.

    Returns the names of parameters that the state lacks; their moments start at zero.
    """
    step_count, known = ranks.broadcast(_shapes(state) if ranks.is_main else None)
    if step_count == 0:
        return []
    base = base_optimizer(engine)
    stage = engine.zero_optimization_stage()
    # Optimizers create their state at the first step; create it here to have something to write into.
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
            full = state["moments"][name][key] if state and ranks.is_main else torch.empty(shape)
            full = ranks.broadcast_tensor(full.contiguous()).to(ranks.device)
            if stage == 0:
                base.state[parameter][key].copy_(full)
            else:
                set_full_state(parameter, full, key)
    return missing


def _shapes(state: OptimizerState | None) -> tuple[int, dict[str, dict[str, list[int]]]]:
    if state is None:
        return 0, {}
    moments = state["moments"].items()
    return state["step"], {name: {key: list(moment.shape) for key, moment in own.items()} for name, own in moments}


def _kept_moments(engine: Engine) -> dict[str, tuple[str, ...]]:
    """Return which of MOMENTS the optimizer keeps for each parameter; Muon keeps the first."""
    base = base_optimizer(engine)
    of_muon = base.matrices if isinstance(base, MuonAdamW) else ()
    return {name: MOMENTS[:1] if name in of_muon else MOMENTS for name, _ in engine.module.named_parameters()}


def _partitions(engine: Engine, base: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the tensors that key the base optimizer's state on this rank."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [tensor for group in base.param_groups for tensor in group["params"]]


def _link_moments(engine: Engine) -> None:
    """Map each parameter to its slice of the moments, for stages 1 and 2.

    DeepSpeed 0.19.8 does this after the first parameter group's first step, when the other groups have no moments yet,
    and never again.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _step_device(partition: torch.Tensor) -> torch.device:
    """Fused AdamW keeps its step count beside the parameters."""
    return partition.device
