"""Before a run starts: into how many passes a step is divided, and one step that changes nothing.

What does not fit into memory, or does not compile, shows here and not hours later. The tokens of a rehearsal are all
the same one, of the shape that training has: they are for the machine, and no weight, moment or count keeps a trace.
"""

import time
from collections.abc import Callable

import deepspeed
import psutil
import torch

from engine.config import Preset
from engine.device import deepspeed_engine, machine
from engine.device.memory import is_out_of_memory, too_large
from engine.device.ranks import Ranks
from engine.run.stability import Guard
from engine.run.step import StepResult
from engine.screen.console import Console
from model.latent import LookAhead, LookAheadSampler, Trained, rows_to_look_ahead
from model.transformer import TransformerLM
from sources.loading.loader import Batch

WORTH = 1.03  # what larger passes must be faster by on a GPU
NOISE = 1.2  # on a CPU other work disturbs the clock, and what compiled passes cost beside their rows does not show
LONG_SECONDS, TIMED_SECONDS = 2.0, 0.5  # larger passes than such a long one win nothing; how long others are timed
OPTIMIZER_BYTES = 12  # a parameter, beside weights and gradients: two moments, and a stage's flat copy


def choose_rows(preset: Preset, model: TransformerLM, bf16: bool, saved: int | None, ranks: Ranks, say: Console) -> int:
    """Rows of one pass, so that a step, whose rows stay, fits into memory and is fast; the same on all ranks.

    The model is put on the device and stands there with no gradients. `saved` is what the lineage has so far: taken
    again where it still fits, so that a run that resumes has the bits of one that was never stopped. With
    train.deterministic the clock decides nothing. Raises PresetError where not even one row fits.
    """
    train = preset.train
    of_step = train.per_gpu_batch_size * train.accumulation_steps
    trial = _Trial(preset, model, bf16, ranks)
    if saved is not None and of_step % saved == 0 and trial.seconds_per_row(saved) is not None:
        say.say(f"Passes of {saved} rows, {of_step // saved} a step and process, as before.")
        return saved
    divisors = [rows for rows in range(1, of_step + 1) if of_step % rows == 0]
    if train.deterministic:
        smaller = [rows for rows in divisors if rows <= train.per_gpu_batch_size]
        fitting = next((rows for rows in reversed(smaller) if trial.seconds_per_row(rows) is not None), None)
        if fitting is None:
            raise too_large(with_rows(preset, 1), ranks)
        return fitting
    # Rollouts and the contrast of spans see a pass alone: with fewer rows than this they would not be what was asked.
    least = next((rows for rows in divisors if rows >= rows_to_look_ahead(preset.auxiliary)), of_step)
    seconds: dict[int, float] = {}
    for rows in [rows for rows in divisors if rows >= least]:
        measured = trial.seconds_per_row(rows)
        if measured is None:
            break
        seconds[rows] = measured
        if rows * measured > LONG_SECONDS:
            break
    for rows in [rows for rows in reversed(divisors) if rows < least and not seconds]:
        if (measured := trial.seconds_per_row(rows)) is not None:
            seconds[rows] = measured
            break
    if not seconds:
        raise too_large(with_rows(preset, 1), ranks)
    fastest = min(seconds.values())
    if trial.is_cpu:
        chosen = max(rows for rows, measured in seconds.items() if measured <= NOISE * fastest)
    else:
        chosen = min(rows for rows, measured in seconds.items() if measured <= WORTH * fastest)
    told = ", ".join(f"{rows}: {fastest / measured:.0%}" for rows, measured in seconds.items())
    say.say(f"Passes of {chosen} rows, {of_step // chosen} a step and process (speed by rows: {told}).")
    return chosen


def with_rows(preset: Preset, rows: int) -> Preset:
    """The preset with passes of `rows` rows and as many of them as keep the step."""
    train = preset.train
    passes = train.per_gpu_batch_size * train.accumulation_steps // rows
    changes = {"per_gpu_batch_size": rows, "accumulation_steps": passes}
    return preset.model_copy(update={"train": train.model_copy(update=changes)})


class _Trial:
    """Passes of the model, uncompiled, timed on all ranks at once."""

    def __init__(self, preset: Preset, model: TransformerLM, bf16: bool, ranks: Ranks):
        self.preset, self.model, self.bf16, self.ranks = preset, model.to(ranks.device), bf16, ranks
        self.is_cpu = ranks.device.type == "cpu"
        machine.forget_peak_memory()
        self._rss, self._bytes_per_row, self._most_rows = psutil.Process().memory_info().rss, 0.0, 0
        self._held_back = OPTIMIZER_BYTES * model.num_parameters()

    def seconds_per_row(self, rows: int) -> float | None:
        """The slowest rank's best pass after a first one; None where some rank's memory is not enough."""
        measured = self._measure(rows)
        by_rank = self.ranks.gather_json(measured)
        return None if None in by_rank else max(by_rank)

    def _measure(self, rows: int) -> float | None:
        if self.is_cpu and not self._has_room(rows):
            return None
        try:
            held_back = torch.empty(0 if self.is_cpu else self._held_back, dtype=torch.uint8, device=self.ranks.device)
            first = self._pass(rows)
            times = [self._pass(rows)]
            while first <= LONG_SECONDS and (len(times) < 2 or sum(times) < TIMED_SECONDS):
                times.append(self._pass(rows))
            del held_back
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            times = None
        for parameter in self.model.parameters():
            parameter.grad = None
        if not self.is_cpu:
            torch.cuda.empty_cache()
        self._passed(rows)
        return None if times is None else min(times) / rows

    def _has_room(self, rows: int) -> bool:
        """Whether a CPU's memory is enough, by what passes of at most half as many rows took: no allocation fails
        there, the kernel would kill the process."""
        while True:
            coming = min(rows, max(1, 2 * self._most_rows))
            if self._bytes_per_row * coming + self._held_back > machine.available_memory_each():
                return False
            if coming == rows:
                return True
            self._pass(coming)
            self._passed(coming)

    def _passed(self, rows: int) -> None:
        if rows > self._most_rows:
            self._bytes_per_row, self._most_rows = max(0, machine.peak_memory() - self._rss) / rows, rows

    def _pass(self, rows: int) -> float:
        preset, device = self.preset, self.ranks.device
        batch = same_tokens(preset, rows, 1)
        tensors = [tensor[0].to(device) for tensor in (batch.input_ids, batch.labels, batch.segment_ids)]
        options = {}
        if preset.auxiliary.looks_ahead:
            sampler = LookAheadSampler(preset.auxiliary, preset.model.seq_length, seed=0)
            options["look_ahead"] = sampler.draw(batch.segment_ids[0], Trained.alike(1.0), 0).to(device)
        if not preset.data.document_mask:
            tensors[2] = None
        self._synchronize()
        begin = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss_sum, *_ = self.model(*tensors, **options)
        loss_sum.backward()
        self._synchronize()
        return time.perf_counter() - begin

    def _synchronize(self) -> None:
        if not self.is_cpu:
            torch.cuda.synchronize(self.ranks.device)


def rehearse(
    engine: deepspeed.DeepSpeedEngine,
    step: Callable[[Batch, int, list[LookAhead] | None, Guard], StepResult],
    preset: Preset,
    rows: int,
    look_ahead: Callable[[Batch], list[LookAhead] | None],
    ranks: Ranks,
) -> None:
    """One step of passes of `rows` rows, with what the latent core is to `look_ahead` at, at a learning rate of 0, and
    all it leaves behind taken back. The optimizer's state must not be loaded yet.

    It has as many passes as it takes until memory is at its fullest: the gradients of one wait beside the next.
    """
    passes = min(2, preset.train.accumulation_steps)
    batch = same_tokens(preset, rows, passes)
    with deepspeed_engine.rehearsed_step(engine, passes):
        step(batch, batch.num_tokens * ranks.world_size, look_ahead(batch), Guard("log", 1))


def same_tokens(preset: Preset, rows: int, passes: int) -> Batch:
    """A batch of a step's shape, in which every token is token 0 and nothing is padding."""
    shape = (passes, rows, preset.model.seq_length)
    tokens = torch.zeros(shape, dtype=torch.int64)
    segment_ids, source_ids = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape[:2], dtype=torch.int64)
    return Batch(tokens, tokens.clone(), segment_ids, source_ids, tokens.numel(), -1, {}, [])
