"""The optimizer's state as plain tensors, in full and by parameter name: any ZeRO stage and world size continues it."""

import torch
import torch.distributed as dist

from engine.checkpoint.state import MOMENTS, OptimizerState
from engine.device.deepspeed_engine import Engine, fragments
from engine.device.ranks import Ranks
from engine.optim.muon import MuonAdamW


def optimizer_state(engine: Engine, keep: bool) -> OptimizerState:
    """Return the optimizer's full moments by parameter name, on the CPU, and its step count (0: no moments yet).

    All ranks must call it; those without `keep` get no moments.
    """
    optimizer = engine.basic_optimizer
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, flat, fragment in fragments(engine) if steps else ():
        for key in _kept_moments(engine, name):
            full = torch.zeros(fragment.shape, device=flat.device)
            part = optimizer.state[flat][key].view(-1)[fragment.place : fragment.place + fragment.numel]
            full.view(-1)[fragment.start : fragment.start + fragment.numel] = part
            if engine.zero_optimization_stage() > 0:
                dist.all_reduce(full)
            if keep:
                moments.setdefault(name, {})[key] = full.cpu()
    return {"step": steps[0] if steps else 0, "moments": moments}


def load_optimizer_state(engine: Engine, state: OptimizerState | None, ranks: Ranks) -> list[str]:
    """Load rank 0's `state` into every rank's optimizer, whichever stage and world size saved it.

    Returns the names of parameters that the state lacks; their moments start at zero.
    """
    saved = state["moments"] if state else {}
    shapes = {name: {key: moment.shape for key, moment in own.items()} for name, own in saved.items()}
    step_count, shapes = ranks.broadcast((state["step"] if state else 0, shapes))
    optimizer, missing = engine.basic_optimizer, []
    for name, flat, fragment in fragments(engine) if step_count else ():
        kept = _kept_moments(engine, name)
        if flat not in optimizer.state:  # optimizers create their state at the first step
            step = torch.tensor(float(step_count), device=flat.device)  # where fused AdamW keeps it
            optimizer.state[flat] = {"step": step, **{key: torch.zeros_like(flat) for key in kept}}
        if any(shapes.get(name, {}).get(key) != fragment.shape for key in kept):
            missing.append(name)
            continue
        for key in kept:
            full = saved[name][key].contiguous() if ranks.is_main else torch.empty(fragment.shape)
            part = ranks.broadcast_tensor(full).view(-1)[fragment.start : fragment.start + fragment.numel]
            optimizer.state[flat][key].view(-1)[fragment.place : fragment.place + fragment.numel] = part
    return missing


def _kept_moments(engine: Engine, name: str) -> tuple[str, ...]:
    """Return which of MOMENTS the optimizer keeps for a parameter; Muon keeps the first."""
    optimizer = engine.basic_optimizer
    return MOMENTS[:1] if isinstance(optimizer, MuonAdamW) and name in optimizer.matrices else MOMENTS
