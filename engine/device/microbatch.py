"""How many rows a micro-batch has: some of growing size are timed, until memory ends or one takes two seconds.

Runs before the engine exists, uncompiled, on all ranks at once. The tokens are all the same one, and no weight, moment
or random number is changed. The sizes that fit are timed in turns, and the median of each counts: so other work that
comes or goes meanwhile slows all of them, and no single trial decides.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

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
TURNS, TURNS_SECONDS, MOST_TURNS = 3, 3.0, 25  # of all sizes: at least so many, more within this time
SHORT_SECONDS = 1.0  # of a micro-batch that a resumed run's is compared with
FAR_LESS = 4  # times fewer rows than would be chosen now: worth a word
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

    def first_seconds(self, rows: int) -> float | None:
        """Return how long the slowest rank's micro-batch of `rows` takes, or None where some rank lacks memory. All
        ranks must call it, and once for each size before that is timed."""
        by_rank = self.ranks.gather(self._try(rows))
        return None if None in by_rank else max(by_rank)

    def seconds_per_row(self, sizes: Sequence[int], turns: int) -> dict[int, float]:
        """Return the slowest rank's median time per row of each size, timed in turns. All ranks must call it."""
        times: dict[int, list[float]] = {rows: [] for rows in sizes}
        for _ in range(turns):
            for rows, taken in times.items():
                taken.append(self._timed(rows) / rows)
        self.model.zero_grad()
        by_rank = self.ranks.gather([median(taken) for taken in times.values()])
        return {rows: max(of_ranks) for rows, of_ranks in zip(times, zip(*by_rank, strict=True), strict=True)}

    def _try(self, rows: int) -> float | None:
        """Run a micro-batch, a second time where the first one was long: it may have waited for memory or compilers."""
        if self.device.type == "cpu" and not self._has_room(rows):
            return None
        seconds: float | None = None
        try:
            # The optimizer's share; a CPU gives what is not touched for nothing.
            held = torch.empty(self._optimizer_bytes, dtype=torch.uint8, device=self.device)
            seconds = self._timed(rows)
            if seconds > LONG_SECONDS:
                seconds = self._timed(rows)
            del held
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            seconds = None
        self.model.zero_grad()
        torch.cuda.empty_cache()
        self._most_rows = max(self._most_rows, rows)
        return seconds

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
            self._timed(size)
            self._most_rows = size

    def _timed(self, rows: int) -> float:
        """Run a micro-batch forward and backward; return its seconds."""
        tokens = torch.zeros(rows, self.shape.row_length, dtype=torch.int64, device=self.device)
        segment_ids = torch.zeros_like(tokens, dtype=torch.int32)
        look_ahead, latent = None, self.model.latent
        if latent is not None:
            sampler = LookAheadSampler(latent.auxiliary, self.shape.seq_length, seed=0)
            look_ahead = sampler.draw(segment_ids.cpu(), Trained.alike(1.0), 0).to(self.device)
        apart = segment_ids if self.document_mask else None
        documents = None if self.model.memory is None else segment_ids
        machine.synchronize(self.device)
        begin = time.perf_counter()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.model(tokens, tokens, apart, look_ahead=look_ahead, documents=documents)
        output.loss_sum.backward()
        machine.synchronize(self.device)
        return time.perf_counter() - begin


def choose_shape(
    probe: MicroBatchProbe, saved: int | None, continues: bool, deterministic: bool, log: EventLog
) -> BatchShape:
    """Return the probe's shape with a micro-batch that fits and is fast, the same on all ranks; rows per step stay.

    `saved` is the size that the lineage had last. A run that `continues` keeps it where it still fits, so that it has
    the bits of an uninterrupted one; the next run of the lineage measures again. With `deterministic`, which is
    train.deterministic, every run keeps it and timing decides nothing. Raises PresetError where not even one row fits.
    """
    rows_per_rank = probe.shape.micro_batch_size * probe.shape.grad_accumulation_steps

    def shape(rows: int) -> BatchShape:
        return replace(probe.shape, micro_batch_size=rows, grad_accumulation_steps=rows_per_rank // rows)

    sizes = _sizes(probe.shape)
    kept = saved if saved and (continues or deterministic) and rows_per_rank % saved == 0 else None
    if kept is not None and (seconds := probe.first_seconds(kept)) is not None:
        log.say(f"{_batches(kept, rows_per_rank)}, as before.")
        if not deterministic and (better := _far_better(probe, kept, seconds, sizes)):
            _advise(kept, better, log)
        return shape(kept)
    if deterministic:
        found = _first_that_fits(probe, [rows for rows in reversed(sizes) if rows <= probe.shape.micro_batch_size])
        if found is None:
            raise too_large(shape(1), probe.device)
        log.say(f"{_batches(found, rows_per_rank)}.")
        return shape(found)
    measured = _time_sizes(probe, sizes)
    if not measured:
        raise too_large(shape(1), probe.device)
    chosen, fastest = _fastest(measured, probe.device), min(measured.values())
    speeds = ", ".join(f"{rows}: {fastest / seconds:.0%}" for rows, seconds in measured.items())
    before = f"; it was {saved:,} in the run before" if saved not in (None, chosen) else ""
    log.say(f"{_batches(chosen, rows_per_rank)} (relative throughput by size: {speeds}){before}.")
    return shape(chosen)


def _batches(rows: int, rows_per_rank: int) -> str:
    number = rows_per_rank // rows
    return f"Micro-batch size {rows:,}, {number:,} gradient accumulation step{'s' if number > 1 else ''}"


def _fastest(seconds: dict[int, float], device: torch.device) -> int:
    """Return the size to take, of seconds per row by size: a CPU's largest, a GPU's smallest of the fast ones."""
    pick, tolerance = (max, CPU_NOISE) if device.type == "cpu" else (min, GPU_GAIN)
    return pick(rows for rows, measured in seconds.items() if measured <= tolerance * min(seconds.values()))


def _far_better(probe: MicroBatchProbe, saved: int, seconds: float, sizes: Sequence[int]) -> int | None:
    """Return a size of FAR_LESS times the rows of `saved`, or more, that would be chosen rather than it: of those that
    take SHORT_SECONDS, the largest. None where there is none; `seconds` are those of a micro-batch of `saved` rows."""
    most = min(probe.shape.micro_batch_size, SHORT_SECONDS * saved / max(seconds, 1e-9))
    larger = [rows for rows in sizes if FAR_LESS * saved <= rows <= most]
    if not larger or probe.first_seconds(larger[-1]) is None:
        return None
    return larger[-1] if _fastest(probe.seconds_per_row([saved, larger[-1]], TURNS), probe.device) > saved else None


def _advise(saved: int, better: int, log: EventLog) -> None:
    rows = "1 row" if saved == 1 else f"{saved:,} rows"
    message = (
        f"This run was begun with micro-batches of {rows}; by what is measured now it would get {better:,} or more. It "
        "keeps its own to its end, so that it trains as it would have without a stop; the next run measures again. To "
        "change them at once, set train.probe_batch to false: then train.per_gpu_batch_size counts."
    )
    log.write("advice", topic="micro-batch", message=message)


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
    short: dict[int, float] = {}
    long: dict[int, float] = {}  # the last one, which is timed but once
    for rows in large_enough:
        if (seconds := probe.first_seconds(rows)) is None:
            break
        if seconds > LONG_SECONDS:
            long[rows] = seconds / rows
            break
        short[rows] = seconds
    if len(short) + len(long) > 1:
        turns = min(MOST_TURNS, max(TURNS, round(TURNS_SECONDS / sum(short.values()))))
        return probe.seconds_per_row(list(short), turns) | long
    smaller = [rows for rows in reversed(sizes) if rows < large_enough[0]]
    found = next(iter(short | long), None) or _first_that_fits(probe, smaller)
    return {} if found is None else {found: 1.0}  # there is nothing to compare it with


def _first_that_fits(probe: MicroBatchProbe, sizes: Sequence[int]) -> int | None:
    """Return the first of `sizes` that fits, if any."""
    return next((rows for rows in sizes if probe.first_seconds(rows) is not None), None)


def dummy_batch(shape: BatchShape) -> Batch:
    """Return a batch of `shape` in which every token is token 0 and nothing is padding."""
    dimensions = (shape.grad_accumulation_steps, shape.micro_batch_size, shape.row_length)
    tokens = torch.zeros(dimensions, dtype=torch.int64)
    segment_ids = torch.zeros(dimensions, dtype=torch.int32)
    source_ids = torch.zeros(dimensions[:2], dtype=torch.int64)
    state = new_state(0, False, 1, {"seq_length": shape.seq_length, "packing": "pad"})
    return Batch(tokens, tokens.clone(), segment_ids, source_ids, tokens.numel(), -1, state, [])
