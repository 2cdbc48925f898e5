"""The optimizer's state as plain tensors, in full and by parameter name: any ZeRO stage and world size continues it."""

from typing import Any

import torch

from engine.checkpoint.state import MOMENTS, OptimizerState
from engine.device.deepspeed_engine import Engine, get_full_state, partitions, set_full_state
from engine.device.ranks import Ranks
from engine.optim.muon import MuonAdamW


def optimizer_state(engine: Engine, keep: bool) -> OptimizerState:
    """Return the optimizer's full moments by parameter name, on the CPU, and its step count (0: no moments yet).

    All ranks must call it; those without `keep` get no moments.
    """
    optimizer, stage = engine.basic_optimizer, engine.zero_optimization_stage()
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    if not steps:
        return {"step": 0, "moments": {}}
    _link_moments(engine)
    kept = _kept_moments(engine)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in engine.module.named_parameters():
        full: dict[str, Any] = {}
        for key in kept[parameter]:
            full[key] = optimizer.state[parameter][key] if stage == 0 else get_full_state(parameter, key)
        if keep:
            moments[name] = {key: tensor.detach().float().cpu().clone() for key, tensor in full.items()}
    return {"step": steps[0], "moments": moments}


def load_optimizer_state(engine: Engine, state: OptimizerState | None, ranks: Ranks) -> list[str]:
    """Load rank 0's `state` into every rank's optimizer, whichever stage and world size saved it.

    Returns the names of parameters that the state lacks; their moments start at zero.
    """
    saved = state["moments"] if state else {}
    shapes = {name: {key: list(moment.shape) for key, moment in own.items()} for name, own in saved.items()}
    step_count, shapes = ranks.broadcast((state["step"] if state else 0, shapes))
    if step_count == 0:
        return []
    optimizer, kept = engine.basic_optimizer, _kept_moments(engine)
    # Optimizers create their state at the first step; create it here to have something to write into.
    for partition, parameters in partitions(engine):
        step = torch.tensor(float(step_count), device=partition.device)  # where fused AdamW keeps it
        zeros = {key: torch.zeros_like(partition) for key in kept[parameters[0]]}
        optimizer.state[partition] = {"step": step, **zeros}
    _link_moments(engine)
    missing = []
    for name, parameter in engine.module.named_parameters():
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        if any(shapes.get(name, {}).get(key) != shape for key in kept[parameter]):
            missing.append(name)
            continue
        for key in kept[parameter]:
            full = saved[name][key] if ranks.is_main else torch.empty(shape)
            full = ranks.broadcast_tensor(full.contiguous()).to(ranks.device)
            if engine.zero_optimization_stage() == 0:
                optimizer.state[parameter][key].copy_(full)
            else:
                set_full_state(parameter, full, key)
    return missing


def _kept_moments(engine: Engine) -> dict[torch.nn.Parameter, tuple[str, ...]]:
    """Return which of MOMENTS the optimizer keeps for each parameter; Muon keeps the first."""
    optimizer = engine.basic_optimizer
    of_muon = optimizer.matrices if isinstance(optimizer, MuonAdamW) else {}
    return {p: MOMENTS[:1] if name in of_muon else MOMENTS for name, p in engine.module.named_parameters()}


def _link_moments(engine: Engine) -> None:
    """Map each parameter to its slice of the moments, for stages 1 and 2.

    DeepSpeed 0.19.8 does this after the first parameter group's first step, when the other groups have no moments yet,
    and never again.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
