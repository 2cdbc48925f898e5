"""From a preset to the components of a run. The only place that takes a whole preset apart into its sections."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import torch

from engine.checkpoint.background import BackgroundSaver
from engine.checkpoint.folder import CheckpointFolder
from engine.checks.overfitting import OverfittingWatch
from engine.checks.preflight import preflight, require_settings
from engine.config import Preset
from engine.config.footprint import Footprint
from engine.control.slow_rank import ForwardTimer
from engine.data.adaptive import AdaptiveSources
from engine.data.batches import Batches, LoaderFactory
from engine.data.curriculum import Curriculum
from engine.data.final_sources import ChangingWeights, FinalSources
from engine.data.validation import ValidationSource
from engine.device import deepspeed_engine, machine
from engine.device.compiling import choose_compile, compile_model
from engine.device.memory import choose_stage, require_memory
from engine.device.microbatch import MicroBatchProbe, choose_shape
from engine.device.ranks import Ranks
from engine.errors import Diverged
from engine.events import EventLog
from engine.optim.expert_balance import ExpertBalance
from engine.optim.schedule import row_length
from engine.run.components import Components
from engine.run.evaluation import Evaluator
from engine.run.resume import Start, find_start, restore_weights
from engine.run.stability import StabilityGuard
from engine.run.state import RunState
from engine.run.step import StepRunner
from engine.run.telemetry import RunFigures, Telemetry
from model.config.size import is_sparse
from model.experts import sparse_layers
from model.latent import LookAheadSchedule
from model.products.linear import use_kernel
from model.transformer import TransformerLM
from sources.loading.loader import BatchShape, LoaderOptions, choose_num_lanes, padded_micro_batch_size
from sources.rows.tokenizer import TextTokenizer


def setup(
    preset: Preset,
    token_budget: int,
    folder: CheckpointFolder,
    ranks: Ranks,
    log: EventLog,
    may_archive: Callable[[str], bool],
    diverged: Diverged | None = None,
) -> Components:
    """Build what a run is made of, from the newest checkpoint in `folder` or for a new lineage. All ranks must call it.

    After `diverged`, a rollback: the checkpoint's weights and progress, but text that was not read yet. `may_archive`
    is asked whether a lineage that does not fit the preset may be moved away. Raises a RunError on all ranks alike.
    """
    train, data, auxiliary = preset.train, preset.data, preset.auxiliary
    require_settings(train, ranks)
    with log.held(), log.stage("checkpoint"):
        lengths = partial(row_length, train, preset.model.seq_length, budget=token_budget)
        start = find_start(preset.model, data, token_budget, folder, ranks, log, may_archive, lengths)
    saved_progress = None if start.is_new or diverged else asdict(start.progress)
    if diverged is not None:
        start.state, start.progress.skipped = cast(RunState, diverged.state), diverged.skipped
        log.write("rollback", step=diverged.step, to_step=start.progress.step, reason=diverged.what)
    state: dict[str, Any] = dict(start.state or {})

    # Text: sources, tokenizer, cache; and whether the model has room.
    shape = batch_shape(preset, ranks, start.seq_length)
    cache, opened, tokenizer = preflight(data, auxiliary, start, shape, token_budget, folder, ranks, log)

    # Weights, and a micro-batch that fits beside them.
    with log.stage("model"):
        model, message = _make_model(preset, start, tokenizer, folder, ranks)
    footprint = Footprint(
        model.config,
        model.num_parameters(),
        shape.windows * (1 if train.probe_batch else shape.micro_batch_size),
        ranks.world_size,
        train.offload_optimizer,
        train.checkpoint_activations,
    )
    stage = choose_stage(train.zero_stage, footprint, ranks)
    train = train.model_copy(update={"zero_stage": stage})
    bf16 = machine.choose_bf16(train.precision, ranks, log)
    saved_products = None if start.state is None else state.get("products", "torch")
    by_kernel = machine.choose_products(train, preset.model.hidden_size, bf16, saved_products, ranks, log)
    use_kernel(by_kernel)
    # Where rows change their length a micro-batch keeps its tokens.
    saved_rows = state.get("rows_of_pass", 0) * state.get("row_length", shape.row_length) // shape.row_length or None
    if train.probe_batch:
        divided = footprint.bytes_beside(stage) if stage and (ranks.world_size > 1 or train.offload_optimizer) else None
        probe = MicroBatchProbe(model, shape, ranks, bf16, data.document_mask, divided)
        with log.stage("micro-batch"):
            resumes = start.continues or bool(diverged)
            shape = choose_shape(probe, saved_rows, resumes, train.deterministic, log)
    num_workers = machine.choose_num_workers(data.num_workers, ranks.device)
    # Of a new lineage; rank 0 decides, since machines may have different numbers of cores.
    num_lanes = ranks.broadcast(choose_num_lanes(ranks.world_size, num_workers))
    loader_state = state.get("loader")
    padded_rows = padded_micro_batch_size(shape, loader_state["num_lanes"] if loader_state else num_lanes)
    padded = replace(shape, micro_batch_size=padded_rows)
    require_memory(model, padded, stage, ranks.device, train.probe_batch)
    # Counted before the engine takes the weights: ZeRO stage 3 leaves each rank with empty ones.
    parameters, flops = model.num_parameters(), model.flops_per_token(shape.seq_length)
    active_parameters = model.num_active_parameters()
    if message:
        log.write("resume", step=start.progress.step, tokens_total=start.progress.tokens_total, message=message)

    # The engine.
    with log.stage("engine"):
        engine = deepspeed_engine.initialize(model, train, shape, ranks, bf16)
    compile_cache = choose_compile(train.compile, stage, ranks, log)
    if compile_cache and train.expert_parallel_size > 1:
        log.say("Experts that are spread over processes stay uncompiled.")
    warmup_repeats = compile_model(engine) if compile_cache else 1

    # Validation rows, batches, and what watches over the steps.
    validation = ValidationSource(
        opened, state.get("pins", {}), data, tokenizer, shape.seq_length, train.eval_tokens, shape.windows
    )
    with log.stage("validation"):
        rows = validation.rows(folder.folder, cache, ranks, log)
    curriculum = Curriculum(auxiliary, ranks) if auxiliary.enable_curriculum else None
    if curriculum and state.get("curriculum"):
        curriculum.load(state["curriculum"])
    look_ahead = LookAheadSchedule(
        model.latent,
        shape.seq_length,
        train.seed,
        token_budget,
        start.progress.tokens_total,
        state.get("parts_begin"),
    )
    adaptive = None
    if auxiliary.enable_adaptive_sources:
        adaptive = AdaptiveSources(auxiliary, data, log, state.get("adaptive"))
    final = None
    if data.final_source_weights:
        final = FinalSources(data, token_budget, start.progress.run, log, state.get("final_sources"))
    weights = ChangingWeights(data.weights(), adaptive, final)
    options = LoaderOptions(
        num_lanes=num_lanes,
        num_workers=num_workers,
        seed=train.seed,
        pin_memory=ranks.device.type == "cuda",
        cache=cache,
        weights_at=weights.weights_at if adaptive or final else None,
        near_copies=validation.near_copies(rows),
        long_texts=len(train.seq_length_schedule) > 1 and shape.seq_length == preset.model.seq_length,
    )
    factory = LoaderFactory(data, tokenizer, shape, options)
    with log.stage("data"):
        batches = Batches(opened, factory, weights, state, ranks, log)
    guard = StabilityGuard(train.on_spike, train.max_skipped_steps)
    if state.get("guard"):
        guard.load(state["guard"])

    preset_values = preset.model_dump(mode="json", by_alias=True)
    # Programs read the rows of a micro-batch from here, also where they were probed.
    preset_values["train"]["per_gpu_batch_size"] = shape.micro_batch_size * shape.windows
    preset_values["train"]["accumulation_steps"] = shape.grad_accumulation_steps
    peak = machine.peak_flops(ranks.device, bf16)
    window = shape.seq_length if model.memory is not None else None
    evaluator = Evaluator(rows, batches.source_names, padded_rows, data.document_mask, ranks, window)
    expert_blocks = tuple(number for number in range(start.model.num_layers) if is_sparse(start.model, number))
    balance = ExpertBalance(sparse_layers(model.blocks), auxiliary.expert_bias_rate) if expert_blocks else None
    figures = RunFigures(token_budget, flops, peak and peak * ranks.world_size, model.latent is not None, expert_blocks)
    components: Components
    components = Components(
        name=preset.name,
        train=train,
        preset_values=preset_values,
        token_budget=token_budget,
        longest_rows=preset.model.seq_length,
        progress=start.progress,
        shape=shape,
        tokenizer=tokenizer,
        engine=engine,
        compile_cache=compile_cache,
        by_kernel=by_kernel,
        warmup_repeats=warmup_repeats,
        optimizer=start.restored.optimizer if start.restored else None,
        is_new=start.is_new,
        is_reshaped=train.probe_batch and saved_rows not in (None, shape.micro_batch_size),
        ranks=ranks,
        log=log,
        folder=folder,
        runner=StepRunner(
            engine,
            ranks,
            len(batches.source_names),
            train.gradient_clipping,
            data.document_mask,
            curriculum,
            train.forbid_synchronization,
            ForwardTimer(ranks.device) if ranks.world_size > 1 else None,
            balance,
        ),
        evaluator=evaluator,
        batches=batches,
        guard=guard,
        look_ahead=look_ahead,
        telemetry=Telemetry(batches.source_names, figures, train.log_interval_seconds, log, ranks.device),
        overfitting=OverfittingWatch.from_state(state.get("overfitting")),
        saver=BackgroundSaver(
            lambda: components.capture(), train.save_interval_minutes, folder, ranks, log, saved_progress
        ),
    )
    _log_run(components, (parameters, active_parameters), bf16, num_workers)
    return components


def batch_shape(preset: Preset, ranks: Ranks, seq_length: int | None = None) -> BatchShape:
    """Return the shape that the preset asks for; with train.probe_batch the micro-batch may become another. Of shorter
    rows, which divide the preset's, a micro-batch has more."""
    train, longest = preset.train, preset.model.seq_length
    length = seq_length or longest
    rows = train.per_gpu_batch_size // preset.windows * (longest // length)
    return BatchShape(rows, train.accumulation_steps, length, ranks.rank, ranks.world_size, preset.windows)


def _make_model(
    preset: Preset, start: Start, tokenizer: TextTokenizer, folder: CheckpointFolder, ranks: Ranks
) -> tuple[TransformerLM, str | None]:
    """Return the model with its first or restored weights, the same on every rank, and what was resumed."""
    torch.manual_seed(preset.train.seed)
    model = TransformerLM(start.model, tokenizer.vocab_size, preset.auxiliary)
    model.checkpoint_activations = preset.train.checkpoint_activations
    return model, restore_weights(model, start, folder, ranks)


def _log_run(components: Components, parameters: tuple[int, int], bf16: bool, num_workers: int) -> None:
    """Write the run event: the preset, and what follows from it and the machine. parameters: all; those of a token."""
    shape, ranks, figures = components.shape, components.ranks, components.telemetry.figures
    components.log.write(
        "run",
        preset=components.preset_values,
        derived={
            "parameters": parameters[0],
            "active_parameters": parameters[1],
            "flops_per_token": figures.flops_per_token,
            "vocab_size": components.tokenizer.vocab_size,
            "zero_stage": components.engine.zero_optimization_stage(),
            "seq_length": shape.seq_length,
            "global_batch_tokens": shape.rows_per_step * shape.row_length,
            "held_out_tokens": components.evaluator.num_tokens,
            "held_out_shortfalls": components.evaluator.rows.shortfalls,
            "precision": "bf16" if bf16 else "fp32",
            "compiled": components.compile_cache is not None,
            "products": "kernel" if components.by_kernel else "torch",
            "lanes": components.batches.num_lanes,
            "rows_per_pass": components.evaluator.micro_batch_size * shape.windows,
            "data_workers": num_workers,
            "world_size": ranks.world_size,
            "token_budget": components.token_budget,
            "run": components.progress.run,
            "peak_flops": figures.peak_flops,
            "memory_bytes": machine.total_memory(ranks.device),
            "bf16_instructions": machine.bf16_instructions(ranks.device) if bf16 else None,
            "idle_gpus": max(0, torch.cuda.device_count() - 1) if ranks.world_size == 1 else 0,
        },
        machine=machine.describe(ranks.device),
    )
