"""What a run continues: the newest checkpoint that verifies, or nothing. Rank 0 alone reads and decides; the others
receive the result, so that a run needs no shared disk and ranks cannot differ."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from engine import events
from engine.checkpoint.folder import CheckpointFolder, RestoredCheckpoint
from engine.checkpoint.owner import note_owner, require_here
from engine.device.ranks import Ranks
from engine.errors import CheckpointError, PresetError
from engine.events import EventLog
from engine.formatting import count
from engine.run.state import Progress, RunState
from model.config import ModelConfig
from model.experts import upcycled, upcycling_problem
from model.positions import extended_rows
from model.snapshot import architecture_differences, has_biases, learned_positions, restore
from model.transformer import TransformerLM
from sources.config import DataConfig, TrainBPE
from sources.loading.state import is_newer_format, is_readable, without_sources
from sources.rows.tokenizer import TokenizerError, load_tokenizer


@dataclass
class Start:
    """Where a run starts, the same on every rank but for `restored`, which rank 0 alone has."""

    progress: Progress
    state: RunState | None  # None where the text starts over
    seq_length: int  # of the rows from here on
    model: ModelConfig  # the preset's, with what a lineage keeps: its positions, and biases or none
    is_new: bool  # a new lineage
    continues: bool  # a run that was begun before; else it is a lineage's first or next one
    restored: RestoredCheckpoint | None


def find_start(
    model: ModelConfig,
    data: DataConfig,
    token_budget: int,
    folder: CheckpointFolder,
    ranks: Ranks,
    log: EventLog,
    may_archive: Callable[[str], bool],
    row_length: Callable[[int], int],
) -> Start:
    """Find what to continue. Raises PresetError, CheckpointError or SaveError, on all ranks alike.

    `row_length` returns the tokens of a row after so many of a run.
    `may_archive` is asked, with the differences in a sentence, whether a lineage with another architecture or tokenizer
    may be moved to archive/.
    """
    restored: RestoredCheckpoint | None = None

    def find() -> dict[str, Any]:
        nonlocal restored
        require_here(folder.folder)
        restored = folder.newest()
        progress = Progress() if restored is None else _next_progress(restored, token_budget)
        rows = row_length(progress.tokens_in_run)
        asked = model.model_copy(update={"seq_length": rows})
        kept = asked if restored is None else _with_what_is_kept(restored, asked)
        if restored is not None and (differences := _differences(restored, kept, asked, data)):
            sentence = f"{restored.path} does not fit this preset: {'; '.join(differences)}."
            if not may_archive(sentence):
                raise PresetError(
                    f"{sentence} Choose the preset it was trained with, or move {folder.folder} away to start over."
                )
            archived = folder.archive()
            log.close()  # the file of events went with it
            log.say(f"The old lineage was moved to {archived}.")
            restored = None
        if restored is None:
            folder.require_writable()
            rows = row_length(0)
            first = model.model_copy(update={"seq_length": rows, "layer_rescaling": "none"})
            new = {"progress": asdict(Progress()), "state": None, "seq_length": rows, "is_new": True}
            return {**new, "model": first.model_dump(), "continues": False}
        state = _valid_state(restored, data)
        restored.notes.extend(folder.repair(restored))
        folder.require_writable()
        if kept.bias != model.bias:
            has = "biases, which it keeps" if kept.bias else "no biases and gets none"
            restored.notes.append(f"Its model has {has}: the preset's model.bias counts for new models.")
        state = _with_rows(restored, state, progress, rows)
        found = {"progress": asdict(progress), "state": state, "seq_length": rows, "is_new": False}
        continues = progress.run == Progress.from_json(restored.snapshot.progress or {}).run
        return {**found, "model": kept.model_dump(), "continues": continues}

    found = ranks.on_main(find)
    note_owner(folder.folder, ranks)
    progress, shape = Progress(**found.pop("progress")), ModelConfig(**found.pop("model"))
    return Start(progress, model=shape, **found, restored=restored)


def restore_weights(model: TransformerLM, start: Start, folder: CheckpointFolder, ranks: Ranks) -> str | None:
    """Load the snapshot into `model`, on all ranks; return what was resumed in sentences, on rank 0."""
    restored, message = start.restored, None
    if restored is not None:
        lost = events.tokens_reached(folder.folder) - start.progress.tokens_total
        if lost > 0:
            restored.notes.append(f"{count(lost)} tokens that were trained after it are lost.")
        if restored.data is not None and start.state is None:
            restored.notes.append("Its position in the text is of another version: the text starts over.")
        weights = restored.snapshot.model
        if start.model.num_experts and _is_dense(restored):
            weights = upcycled(weights, start.model)
            restored.notes.append("Its MLPs became experts, copies or slices of them; the routers start fresh.")
        report = restore(model, weights)
        if model.positions is not None:
            _extend_moments(restored, model)
        message = _resumed(restored, report.summary(), start)
    for tensor in model.state_dict().values():
        ranks.broadcast_tensor(tensor)
    return message


def _is_dense(restored: RestoredCheckpoint) -> bool:
    return not (restored.snapshot.config or {}).get("num_experts")


def _resumed(restored: RestoredCheckpoint, report: str, start: Start) -> str:
    progress = start.progress
    optimizer = "with its optimizer" if restored.optimizer is not None else "without optimizer state"
    position = "and data position" if start.state is not None else "and without data position"
    sentence = (
        f"{restored.path} at {count(progress.tokens_total)} tokens, step {progress.step:,} (run {progress.run}), "
        f"{optimizer} {position}: {report}"
    )
    return " ".join([sentence, *restored.notes])


def _next_progress(restored: RestoredCheckpoint, token_budget: int) -> Progress:
    """The snapshot's progress; a finished run is followed by the next one."""
    saved = restored.snapshot.progress or {}
    progress = Progress.from_json(saved)
    if progress.tokens_in_run >= token_budget and saved.get("finished", True):  # older snapshots lack the key
        progress.run += 1
        progress.tokens_in_run, progress.longer_since = 0, None
    progress.finished = False
    return progress


def _valid_state(restored: RestoredCheckpoint, data: DataConfig) -> dict[str, Any] | None:
    """The saved state without the sources that the preset now describes differently: those start over. None where it is
    of an older version; raises CheckpointError for a later one's."""
    state = restored.data
    if state is None:
        return None
    loader = state.get("loader")  # None before the first step
    if loader is not None and is_newer_format(loader):
        raise CheckpointError(
            f"{restored.path}: its position in the text is of a later version; use the version that wrote it. "
            "Nothing was changed."
        )
    if loader is not None and not is_readable(loader):
        return None
    saved = ((restored.snapshot.preset or {}).get("data") or {}).get("sources", [])
    changed = {spec.source_name for spec in data.sources if spec.model_dump(mode="json") not in saved}
    return {
        **state,
        "loader": None if loader is None else without_sources(loader, changed),
        "pins": {name: pin for name, pin in state["pins"].items() if name not in changed},
    }


def _with_rows(
    restored: RestoredCheckpoint, state: dict[str, Any] | None, progress: Progress, rows: int
) -> dict[str, Any] | None:
    """The state as it continues with rows of so many tokens; `progress` notes where they became longer."""
    loader = (state or {}).get("loader")
    before = loader["rows"]["seq_length"] if loader else (restored.snapshot.config or {}).get("seq_length", rows)
    if before < rows and progress.tokens_total:
        progress.longer_since = progress.tokens_in_run
    if loader is None or before == rows:
        return state
    restored.notes.append(f"Rows of {before:,} tokens become rows of {rows:,}.")
    return {**(state or {}), "guard": None, "overfitting": None}  # other rows have other losses


def _extend_moments(restored: RestoredCheckpoint, model: TransformerLM) -> None:
    """Where a table of positions grew, what the optimizer keeps of it grows as the table did."""
    moments = restored.optimizer["moments"].get("positions.weight", {}) if restored.optimizer else {}
    length, how = model.config.seq_length, model.config.position_extension
    for key, moment in moments.items():
        if len(moment) < length:
            moments[key] = extended_rows(moment, length, how)


def _with_what_is_kept(restored: RestoredCheckpoint, model: ModelConfig) -> ModelConfig:
    """`model` as it continues this checkpoint: positions are never cut, biases neither come nor go, and rotations and
    the factors of layers change only where rows become longer than all before."""
    trained = _trained_length(restored, model)
    former = restored.snapshot.config or {}
    original, factors = former.get("rope_original_length"), former.get("layer_rescaling", "none")
    update: dict[str, Any] = {"seq_length": max(model.seq_length, trained), "bias": has_biases(restored.snapshot.model)}
    if model.seq_length <= trained:
        update |= {"rope_scaling": former.get("rope_scaling", "none"), "rope_original_length": original}
        update["layer_rescaling"] = factors
    else:
        is_scaled = model.positions == "rotary" and model.rope_scaling != "none"
        update["rope_original_length"] = (original or trained) if is_scaled else None
        update["layer_rescaling"] = factors if factors != "none" else model.layer_rescaling
    return model.model_copy(update=update)


def _trained_length(restored: RestoredCheckpoint, model: ModelConfig) -> int:
    """Positions in the snapshot: a preset with shorter rows must not cut what is learned."""
    config = restored.snapshot.config or {}  # a bare state dict has none
    return learned_positions(restored.snapshot.model) or config.get("seq_length", model.seq_length)


def _differences(
    restored: RestoredCheckpoint, model: ModelConfig, asked_for: ModelConfig, data: DataConfig
) -> list[str]:
    """What makes a snapshot another model than the preset's, in words: `model` is that with what it keeps, `asked_for`
    as it stands there. A bare state dict is judged by its shapes."""
    snapshot = restored.snapshot
    upcycling = upcycling_problem(model) if model.num_experts and _is_dense(restored) else None
    found = [upcycling] if upcycling else []
    trained = _trained_length(restored, asked_for)
    if model.memory_tokens and trained != asked_for.seq_length:
        found.append(
            f"it has {trained} positions and the preset a seq_length of {asked_for.seq_length}, where memory "
            "tokens need as many"
        )
    if snapshot.config is None:
        return found
    # The vocabulary belongs to the tokenizer, which is compared below.
    vocabulary = {key: snapshot.config[key] for key in ("vocab_size", "eos_token_id")}
    differences = architecture_differences(snapshot.config, model.model_dump() | vocabulary)
    differences += found
    saved = ((snapshot.preset or {}).get("data") or {}).get("tokenizer")
    asked = data.model_dump(mode="json")["tokenizer"]
    if saved != asked and not _is_same_tokenizer(snapshot.tokenizer, data.tokenizer):
        differences.append(f"tokenizer {saved} in the checkpoint, {asked} in the preset")
    return differences


def _is_same_tokenizer(saved_json: str | None, spec: str | TrainBPE) -> bool:
    """Whether a tokenizer of another name is the saved one after all (a hub name and its local copy, say)."""
    if saved_json is None or isinstance(spec, TrainBPE):
        return False
    try:
        return load_tokenizer(spec).encodes_as(saved_json)
    except TokenizerError:
        return False
