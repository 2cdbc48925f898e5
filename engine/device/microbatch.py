"""How many rows a micro-batch has: timed micro-batches of growing size, until memory ends or one takes two seconds.

Runs before the engine exists, uncompiled, on all ranks at once. The tokens are all the same one, and no weight, moment
or random number is changed.
"""

import math
import time
from dataclasses import replace

import psutil
import torch

from engine.config.schema import MOST_ROWS
from engine.device import host, machine
from engine.device.memory import is_out_of_memory, too_large
from engine.device.ranks import Ranks
from engine.events import EventLog
from model.latent import LookAheadSampler, Trained, rows_to_look_ahead
from model.transformer import TransformerLM
from sources.loading.loader import Batch
from sources.loading.shape import BatchShape
from sources.loading.state import new_state

GPU_GAIN = 1.03  # a larger micro-batch must be faster by this on a GPU
CPU_NOISE = 1.2  # CPU timings are noisy, and per-micro-batch costs of compiled code do not show here
LONG_SECONDS = 2.0  # larger micro-batches than one that takes so long gain nothing
TIMED_SECONDS = 0.5  # per size
OPTIMIZER_BYTES = 12  # per parameter, beside weights and gradients: two moments, and a ZeRO stage's flat copy


class MicroBatchProbe:
    """Times forward and backward passes of `model`, which it moves to the device and leaves without gradients."""

    def __init__(
        self,
        model: TransformerLM,
        shape: BatchShape,
        ranks: Ranks,
        bf16: bool,
        document_mask: bool,
        optimizer_bytes: int | None = None,  # where ranks divide them
    ):
        self.model, self.shape, self.ranks, self.device = model.to(ranks.device), shape, ranks, ranks.device
        self.bf16, self.document_mask = bf16, document_mask
        machine.reset_peak_memory()
        self._rss, self._most_rows = psutil.Process().memory_info().rss, 0
        whole = OPTIMIZER_BYTES * model.num_parameters()
        self._optimizer_bytes = whole if optimizer_bytes is None else optimizer_bytes

    def seconds_per_row(self, rows: int) -> float | None:
        """Return the slowest rank's best time per row, or None where some rank lacks memory. All ranks must call it."""
        by_rank = self.ranks.gather(self._measure(rows))
        return None if None in by_rank else max(by_rank)

    def _measure(self, rows: int) -> float | None:
        if self.device.type == "cpu" and not self._has_room(rows):
            return None
        times: list[float] = []
        try:
            # The optimizer's share; a CPU gives what is not touched for nothing.
            held = torch.empty(self._optimizer_bytes, dtype=torch.uint8, device=self.device)
            first = self._run(rows)
            while not times or (first <= LONG_SECONDS and (len(times) < 2 or sum(times) < TIMED_SECONDS)):
                times.append(self._run(rows))
            del held
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            times = []
        self.model.zero_grad()
        torch.cuda.empty_cache()
        self._most_rows = max(self._most_rows, rows)
        return min(times) / rows if times else None

    def _has_room(self, rows: int) -> bool:
        """Whether a CPU's memory suffices, estimated from micro-batches of at most half as many rows: an allocation
        never fails there, the kernel kills the process instead."""
        while True:
            size = min(rows, max(1, 2 * self._most_rows))
            needed = size * max(0, machine.peak_memory() - self._rss) / max(1, self._most_rows)
            if needed + self._optimizer_bytes > host.available_memory_each():
                return False
            if size == rows:
                return True
            self._run(size)
            self._most_rows = size

    def _run(self, rows: int) -> float:
        tokens = torch.zeros(rows, self.shape.seq_length, dtype=torch.int64, device=self.device)
        segment_ids = torch.zeros_like(tokens, dtype=torch.int32)
        look_ahead, latent = None, self.model.latent
        if latent is not None:
            sampler = LookAheadSampler(latent.auxiliary, self.shape.seq_length, seed=0)
            look_ahead = sampler.draw(segment_ids.cpu(), Trained.alike(1.0), 0).to(self.device)
        machine.synchronize(self.device)
        begin = time.perf_counter()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.model(tokens, tokens, segment_ids if self.document_mask else None, look_ahead=look_ahead)
        output.loss_sum.backward()
        machine.synchronize(self.device)
        return time.perf_counter() - begin


def choose_shape(probe: MicroBatchProbe, saved: int | None, deterministic: bool, log: EventLog) -> BatchShape:
    """Return the probe's shape with a micro-batch that fits and is fast, the same on all ranks; rows per step stay.

    `saved` is the lineage's micro-batch size: it is kept where it still fits, so that a resumed run has the bits of an
    uninterrupted one. With `deterministic` (train.deterministic) timing decides nothing. Raises PresetError where not
    even one row fits.
    """
    rows_per_rank = probe.shape.micro_batch_size * probe.shape.grad_accumulation_steps

    def shape(rows: int) -> BatchShape:
        return replace(probe.shape, micro_batch_size=rows, grad_accumulation_steps=rows_per_rank // rows)

    if saved is not None and rows_per_rank % saved == 0 and probe.seconds_per_row(saved) is not None:
        log.say(f"Micro-batches of {saved} rows, {rows_per_rank // saved} per step and process, as before.")
        return shape(saved)
    sizes = _sizes(probe.shape)
    if deterministic:
        seconds = _first_that_fits(probe, [rows for rows in reversed(sizes) if rows <= probe.shape.micro_batch_size])
    else:
        seconds = _time_sizes(probe, sizes)
    if not seconds:
        raise too_large(shape(1), probe.device)
    fastest = min(seconds.values())
    pick, tolerance = (max, CPU_NOISE) if probe.device.type == "cpu" else (min, GPU_GAIN)
    chosen = pick(rows for rows, measured in seconds.items() if measured <= tolerance * fastest)
    speeds = ", ".join(f"{rows}: {fastest / measured:.0%}" for rows, measured in seconds.items())
    number = rows_per_rank // chosen
    log.say(f"Micro-batches of {chosen} rows, {number} per step and process (throughput by rows: {speeds}).")
    return shape(chosen)


def _sizes(shape: BatchShape) -> list[int]:
    """Return the micro-batch sizes, in order, that keep the rows per step within what a preset may say."""
    factors = shape.micro_batch_size, shape.grad_accumulation_steps
    sizes = {one * other for one in _divisors(factors[0]) for other in _divisors(factors[1])}
    rows_per_rank = math.prod(factors)
    return sorted(size for size in sizes if size <= MOST_ROWS and rows_per_rank // size <= MOST_ROWS)


def _divisors(number: int) -> set[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return {*small, *(number // n for n in small)}


def _time_sizes(probe: MicroBatchProbe, sizes: list[int]) -> dict[int, float]:
    """Return seconds per row by micro-batch size; empty where not even one row fits."""
    # Rollouts and contrasted spans see one micro-batch: with fewer rows they would not be what the preset asks for.
    latent = probe.model.latent
    least = 1 if latent is None else rows_to_look_ahead(latent.auxiliary)
    large_enough = [rows for rows in sizes if rows >= least] or sizes[-1:]
    seconds: dict[int, float] = {}
    for rows in large_enough:
        if (measured := probe.seconds_per_row(rows)) is None:
            break
        seconds[rows] = measured
        if rows * measured > LONG_SECONDS:
            break
    return seconds or _first_that_fits(probe, [rows for rows in reversed(sizes) if rows < large_enough[0]])


def _first_that_fits(probe: MicroBatchProbe, sizes: list[int]) -> dict[int, float]:
    """Return the first of `sizes` that fits, with its seconds per row, or nothing."""
    for rows in sizes:
        if (measured := probe.seconds_per_row(rows)) is not None:
            return {rows: measured}
    return {}


def dummy_batch(shape: BatchShape) -> Batch:
    """Return a batch of `shape` in which every token is token 0 and nothing is padding."""
    dimensions = (shape.grad_accumulation_steps, shape.micro_batch_size, shape.seq_length)
    tokens = torch.zeros(dimensions, dtype=torch.int64)
    segment_ids = torch.zeros(dimensions, dtype=torch.int32)
    source_ids = torch.zeros(dimensions[:2], dtype=torch.int64)
    state = new_state(0, False, 1, {"seq_length": shape.seq_length, "packing": "pad"})
    return Batch(tokens, tokens.clone(), segment_ids, source_ids, tokens.numel(), -1, state, [])
