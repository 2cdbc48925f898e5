"""The optimizer's state as plain tensors, in full and by parameter name: any ZeRO stage and world size continues it."""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from engine.checkpoint.state import AVERAGE, MOMENTS, OptimizerState
from engine.device.deepspeed_engine import Engine, fragments
from engine.device.ranks import Ranks
from engine.optim.muon import Fragment, MuonAdamW


def optimizer_state(engine: Engine, keep: bool) -> OptimizerState:
    """Return the optimizer's full moments by parameter name, on the CPU, and its step count (0: no moments yet).

    All ranks must call it; those without `keep` get no moments.
    """
    optimizer = engine.basic_optimizer
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, flat, fragment in fragments(engine) if steps else ():
        averaged = (AVERAGE,) if AVERAGE in optimizer.state[flat] else ()
        for key in _kept_moments(engine, name) + averaged:
            full = _whole(engine, key, flat, fragment)
            if keep:
                moments.setdefault(name, {})[key] = full.cpu()
    return {"step": steps[0] if steps else 0, "moments": moments}


def whole_tensors(engine: Engine, key: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter's name and the full tensor that the optimizer keeps for it under `key`. All ranks must take
    part in each."""
    for name, flat, fragment in fragments(engine):
        yield name, _whole(engine, key, flat, fragment)


def _whole(engine: Engine, key: str, flat: torch.Tensor, fragment: Fragment) -> torch.Tensor:
    full = torch.zeros(fragment.shape, device=engine.device)  # where ranks can add
    part = engine.basic_optimizer.state[flat][key].view(-1)[fragment.place : fragment.place + fragment.numel]
    full.view(-1)[fragment.start : fragment.start + fragment.numel] = part
    if engine.zero_optimization_stage() > 0:
        dist.all_reduce(full)
    return full


def load_optimizer_state(engine: Engine, state: OptimizerState | None, ranks: Ranks) -> list[str]:
    """Load rank 0's `state` into every rank's optimizer, whichever stage and world size saved it.

    Returns the names of parameters that the state lacks; their moments start at zero.
    """
    saved = state["moments"] if state else {}
    shapes = {name: {key: moment.shape for key, moment in own.items()} for name, own in saved.items()}
    step_count, shapes = ranks.broadcast((state["step"] if state else 0, shapes))
    optimizer, missing = engine.basic_optimizer, []
    names = [name for name, *_ in fragments(engine)] if step_count else []
    # One that only some parameters have would have to begin again.
    averaged = (AVERAGE,) if all(AVERAGE in shapes.get(name, {}) for name in names) else ()
    for name, flat, fragment in fragments(engine) if step_count else ():
        kept = _kept_moments(engine, name) + averaged
        if flat not in optimizer.state:  # optimizers create their state at the first step
            # where fused AdamW keeps it; Muon's stays where reading it waits for nothing
            device = "cpu" if _is_stepped_by_muon(engine, name) else flat.device
            step = torch.tensor(float(step_count), device=device)
            optimizer.state[flat] = {"step": step, **{key: torch.zeros_like(flat) for key in kept}}
        found = [key for key in kept if shapes.get(name, {}).get(key) == fragment.shape]
        if len(found) < len(kept) and not (MOMENTS[0] in found and _is_stepped_by_muon(engine, name)):
            missing.append(name)
            continue
        for key in found:  # what Muon keeps beside a momentum may begin at zero
            full = saved[name][key].contiguous() if ranks.is_main else torch.empty(fragment.shape)
            part = ranks.broadcast_tensor(full).view(-1)[fragment.start : fragment.start + fragment.numel]
            optimizer.state[flat][key].view(-1)[fragment.place : fragment.place + fragment.numel] = part
    return missing


def _kept_moments(engine: Engine, name: str) -> tuple[str, ...]:
    """Return what the optimizer keeps for a parameter: both of MOMENTS, or what Muon's settings say."""
    if _is_stepped_by_muon(engine, name):
        return (MOMENTS[0], *engine.basic_optimizer.settings.state)
    return MOMENTS


def _is_stepped_by_muon(engine: Engine, name: str) -> bool:
    optimizer = engine.basic_optimizer
    return isinstance(optimizer, MuonAdamW) and name in optimizer.matrices
