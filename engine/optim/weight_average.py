"""The average of the weights over the end of a run, which takes their place once the run has met its budget.

It lies beside the optimizer's moments, in the tensors that the optimizer steps, so it is saved and continued as they
are: at any ZeRO stage and on any number of processes. Every step counts by its tokens, and what has been counted
follows from the run's position, so nothing else has to be kept.
"""

import torch

from engine.checkpoint.state import AVERAGE
from engine.device import deepspeed_engine
from engine.device.deepspeed_engine import Engine, fragments
from engine.device.optimizer_state import whole_tensors


class WeightAverage:
    """Averages over the last `fraction` of a run of `budget` tokens; 0: never."""

    def __init__(self, fraction: float, budget: int):
        self.begin = budget if fraction == 0 else (1 - fraction) * budget
        self.on = fraction > 0

    def start(self, engine: Engine) -> None:
        """Once the optimizer's state is loaded: drop what an earlier run has averaged, where this one does not."""
        for state in engine.basic_optimizer.state.values():
            if not self.on:
                state.pop(AVERAGE, None)

    @torch.no_grad()
    def add(self, engine: Engine, tokens: int, step_tokens: int) -> None:
        """Count the weights after a step of `step_tokens`, with which the run has come to `tokens`."""
        if tokens <= self.begin:
            return
        share = min(1.0, step_tokens / (tokens - self.begin))
        for flat in {flat: None for _, flat, _ in fragments(engine)}:
            state = engine.basic_optimizer.state[flat]
            if AVERAGE not in state:
                state[AVERAGE] = flat.detach().clone()
            state[AVERAGE].lerp_(flat, share)

    def take_place(self, engine: Engine) -> None:
        """Put the average in the place of the weights, where there is one. All ranks must call it."""
        state = engine.basic_optimizer.state
        if self.on and any(AVERAGE in own for own in state.values()):
            deepspeed_engine.assign(engine, whole_tensors(engine, AVERAGE))
