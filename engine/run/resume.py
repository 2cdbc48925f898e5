"""What a run begins with: the newest trustworthy snapshot, or a new lineage; its sources, tokenizer and weights.

Rank 0 alone reads and decides; the others are given the result, so a run needs no shared disk and ranks cannot differ.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from engine import events
from engine.checkpoint.folder import CheckpointFolder, Restored
from engine.config.preset import Preset
from engine.device.memory import require_memory_for_weights
from engine.device.ranks import Ranks
from engine.errors import CheckpointError, Diverged, PresetError, SourcesFailed
from engine.screen.console import Console, count
from model.config import ModelConfig
from model.snapshot.file import LoadReport, architecture_differences, learned_positions, restore
from model.transformer import TransformerLM
from sources.caching import ShardCache, digest, open_cache, read_record, write_record
from sources.config import TrainBPE
from sources.loading.state import STATE_FORMAT
from sources.registry import AllSourcesFailed, OpenedSources, open_sources
from sources.rows.held_out import sample_training_texts
from sources.rows.pipeline import split_text
from sources.rows.tokenizer import TextTokenizer, TokenizerError, load_tokenizer, train_bpe

# A 16k vocabulary is stable well before this much text, and it trains in seconds.
TOKENIZER_TRAINING_BYTES = 32_000_000
PROOF_BYTES = 2_000_000  # of text on which a faster encoder must agree with the tokenizer's own


@dataclass
class Progress:
    """How far a lineage has come; steps and `tokens_total` count over all its runs."""

    run: int = 1
    step: int = 0
    tokens_in_run: int = 0
    tokens_total: int = 0
    evaluation: dict[str, Any] | None = None
    finished: bool = False  # the run has its last evaluation; another follows it
    skipped: int = 0  # steps whose loss or gradient was not to be trained on


@dataclass
class Beginning:
    """Everything that a run begins with, the same on every rank but for `optimizer` and `message`, which rank 0 has."""

    progress: Progress
    opened: OpenedSources
    tokenizer: TextTokenizer
    model: TransformerLM
    model_config: ModelConfig
    cache: ShardCache | None
    data_state: dict[str, Any] | None
    optimizer: dict[str, Any] | None
    message: str | None  # what was resumed
    is_new: bool  # a lineage begins here
    saved: dict[str, Any] | None  # the progress of the snapshot on the disk, where that holds all of this


def begin(
    preset: Preset,
    token_budget: int,
    folder: CheckpointFolder,
    ranks: Ranks,
    console: Console,
    may_archive: Callable[[str], bool],
    diverged: Diverged | None = None,
) -> Beginning:
    """Finds what to continue. Raises PresetError, SourcesFailed, CheckpointError or SaveError, on all
    ranks alike.

    After `diverged`, a rollback: the snapshot's weights and progress, but text that was not read yet.
    `may_archive` is asked, with the differences in a sentence, whether a lineage of another architecture or tokenizer
    may be moved to archive/.
    """
    restored: Restored | None = None

    def find() -> dict[str, Any]:
        nonlocal restored
        restored = folder.newest()
        if restored is not None and (differences := _differences(restored, preset)):
            sentence = f"{restored.path} does not fit this preset: {'; '.join(differences)}."
            if not may_archive(sentence):
                raise PresetError(
                    f"{sentence} Choose the preset it was trained with, or move {folder.folder} away to begin anew."
                )
            console.say(f"The old lineage was moved to {folder.archive()}.")
            restored = None
        if restored is None:
            new = asdict(Progress())
            return {"is_new": True, "progress": new, "data": None, "seq_length": preset.model.seq_length}
        restored.notes.extend(folder.repair(restored))
        return {
            "is_new": False,
            "progress": _progress(restored, token_budget),
            "data": _still_valid(restored, preset),
            "seq_length": max(preset.model.seq_length, _trained_length(restored, preset)),
        }

    found = ranks.on_main(find)
    if diverged is not None:
        found["data"], found["progress"]["skipped"] = diverged.data_state, diverged.skipped
    cache = open_cache(preset.data)
    opened = _open_sources(preset, found["data"], cache, ranks, console)
    tokenizer = _tokenizer(preset, restored, opened, cache, ranks, console)
    config = preset.model.model_copy(update={"seq_length": found["seq_length"]})
    with torch.device("meta"):
        require_memory_for_weights(preset, TransformerLM(config, tokenizer.vocab_size, preset.auxiliary), ranks)
    torch.manual_seed(preset.train.seed)
    model = TransformerLM(config, tokenizer.vocab_size, preset.auxiliary)
    message = None
    if restored is not None:
        lost = events.tokens_reached(folder.folder) - found["progress"]["tokens_total"]
        if lost > 0:
            restored.notes.append(f"{count(lost)} tokens that were trained after it are lost.")
        if restored.data is not None and found["data"] is None:
            restored.notes.append("Its position in the text is of another version: the text begins anew.")
        report, progress = restore(model, restored.snapshot.model), Progress(**found["progress"])
        message = _restored_sentence(restored, report, progress, has_position=found["data"] is not None)
    for tensor in model.state_dict().values():
        ranks.broadcast_tensor(tensor)
    return Beginning(
        progress=Progress(**found["progress"]),
        opened=opened,
        cache=cache,
        tokenizer=tokenizer,
        model=model,
        model_config=config,
        data_state=found["data"],
        optimizer=restored.optimizer if restored is not None else None,
        message=message,
        is_new=found["is_new"],
        saved=None if found["is_new"] or diverged else found["progress"],
    )


def _progress(restored: Restored, token_budget: int) -> dict[str, Any]:
    """The snapshot's progress; a finished run is followed by the next one."""
    saved = restored.snapshot.progress or {}
    progress = Progress(**{key: saved[key] for key in Progress.__dataclass_fields__ if key in saved})
    if progress.tokens_in_run >= token_budget and saved.get("finished", True):  # older snapshots do not say
        progress.run += 1
        progress.tokens_in_run = 0
    progress.finished = False
    return asdict(progress)


def _still_valid(restored: Restored, preset: Preset) -> dict[str, Any] | None:
    """The saved data position without the sources that the preset now describes differently: those begin anew."""
    data = restored.data
    if data is None:
        return None
    loader = data.get("loader")  # None before the first step
    if loader is not None and loader.get("format") != STATE_FORMAT:
        return None
    saved = ((restored.snapshot.preset or {}).get("data") or {}).get("sources", [])
    unchanged = {s.source_name for s in preset.data.sources if s.model_dump(mode="json") in saved}
    described = {s.source_name for s in preset.data.sources}
    changed = described - unchanged
    for lane in loader["lanes"].values() if loader is not None else ():
        for name in changed:
            lane["streams"].pop(name, None)
    return {**data, "pins": {name: pin for name, pin in data["pins"].items() if name not in changed}}


def _trained_length(restored: Restored, preset: Preset) -> int:
    """Positions in the snapshot: a preset with shorter rows must not cut what is learned."""
    if restored.snapshot.config is None:  # a bare state dict
        return learned_positions(restored.snapshot.model)
    return restored.snapshot.config.get("seq_length", preset.model.seq_length)


def _differences(restored: Restored, preset: Preset) -> list[str]:
    """What makes a snapshot another model than the preset's, in words. A bare state dict is judged by its shapes."""
    snapshot = restored.snapshot
    if snapshot.config is None:
        return []
    # The vocabulary belongs to the tokenizer, which is compared by itself.
    same_vocabulary = {"vocab_size": snapshot.config["vocab_size"], "eos_token_id": snapshot.config["eos_token_id"]}
    differences = architecture_differences(snapshot.config, preset.model.model_dump() | same_vocabulary)
    saved = ((snapshot.preset or {}).get("data") or {}).get("tokenizer")
    asked = preset.data.model_dump(mode="json")["tokenizer"]
    if saved != asked and not _same_tokenizer(snapshot.tokenizer, preset):
        differences.append(f"tokenizer {saved} in the checkpoint, {asked} in the preset")
    return differences


def _same_tokenizer(saved_json: str | None, preset: Preset) -> bool:
    """Whether a tokenizer of another name is the saved one after all (a hub name and its local copy, say)."""
    if saved_json is None or isinstance(preset.data.tokenizer, TrainBPE):
        return False
    try:
        return load_tokenizer(preset.data.tokenizer).to_json() == saved_json
    except TokenizerError:
        return False


def _restored_sentence(restored: Restored, report: LoadReport, progress: Progress, has_position: bool) -> str:
    optimizer = "with its optimizer" if restored.optimizer is not None else "without optimizer state"
    data = "and data position" if has_position else "and without data position"
    parts = [
        f"{restored.path} at {count(progress.tokens_total)} tokens, step {progress.step:,} (run {progress.run}), "
        f"{optimizer} {data}: {report.summary()}",
        *restored.notes,
    ]
    return " ".join(parts)


def _open_sources(
    preset: Preset, data: dict[str, Any] | None, cache: ShardCache | None, ranks: Ranks, console: Console
) -> OpenedSources:
    """Opens the sources on rank 0, at the saved commits where there are any, and on the others as rank 0 has them."""
    opened: OpenedSources | None = None
    saved_pins = (data or {}).get("pins", {})

    def open_here() -> dict[str, Any]:
        nonlocal opened
        opened = open_sources(preset.data, saved_pins or None, only_pinned=False, cache=cache)
        for name, reason in opened.failures.items():
            console.warn(f"source {name} is dropped: {reason}")
        for name, source in opened.sources.items():
            while source.notices:
                console.say(f"source {name}: {source.notices.pop(0)}")
        if not opened.sources:
            raise SourcesFailed(
                f"{AllSourcesFailed(opened.failures)} Check the network and the paths, or choose a preset whose text "
                "is on this machine, such as 02_offline_python."
            )
        return opened.pins()

    pins = ranks.on_main(open_here)
    if opened is None:
        opened = open_sources(preset.data, pins, cache=cache)
        lost = set(pins) - set(opened.sources)
        reasons = {name: opened.failures.get(name, "not opened") for name in lost}
    else:
        reasons = {}
    for other, failed in enumerate(ranks.gather_json(reasons)):
        if failed:
            raise SourcesFailed(f"Rank {other} cannot read what rank 0 can: {failed}.")
    return opened


def _tokenizer(
    preset: Preset,
    restored: Restored | None,
    opened: OpenedSources,
    cache: ShardCache | None,
    ranks: Ranks,
    console: Console,
) -> TextTokenizer:
    """The lineage's own tokenizer where there is one, else the preset's, loaded or trained on rank 0.

    Where a faster encoder gives the same ids on the run's own text, it is used.
    """

    def make() -> dict[str, Any]:
        spec = preset.data.tokenizer
        saved = restored.snapshot if restored is not None else None
        kept = cache.remember(f"tokenizer-{_tokenizer_key(preset, opened)}.json") if cache is not None else None
        known = read_record(kept)
        if saved is not None and saved.tokenizer is not None:
            try:
                made = TextTokenizer.from_json(saved.tokenizer, saved.config["eos_token_id"])
            except TokenizerError as error:
                raise CheckpointError(f"{restored.path}: {error}; restore a backup.") from None
        elif known is not None:
            made = TextTokenizer.from_json(known["text"], known["eos_id"], known["pad_id"])
        elif isinstance(spec, TrainBPE):
            console.say(
                f"Training a byte-level BPE of {spec.train_bpe:,} tokens on the sources "
                f"({TOKENIZER_TRAINING_BYTES // 1_000_000} MB of their text)..."
            )
            try:
                made = train_bpe(
                    sample_training_texts(opened.sources, preset.data, TOKENIZER_TRAINING_BYTES), spec.train_bpe
                )
            except TokenizerError as error:
                raise SourcesFailed(str(error)) from None
        else:
            try:
                made = load_tokenizer(spec)
            except TokenizerError as error:
                raise PresetError(str(error)) from None
        parts = {"text": made.to_json(), "eos_id": made.eos_id, "pad_id": made.pad_id}
        if known is not None and known["text"] == parts["text"]:
            return {**parts, "fast": known["fast"]}
        texts = sample_training_texts(opened.sources, preset.data, PROOF_BYTES)
        announcement = made.use_fast_encoder([part for text in texts for part in split_text(text)])
        if announcement:
            console.say(f"Tokenizer: {announcement}.")
        parts["fast"] = announcement is not None
        if kept is not None:
            write_record(kept, parts)
        return parts

    return TextTokenizer.from_json(**ranks.on_main(make))


def _tokenizer_key(preset: Preset, opened: OpenedSources) -> str:
    """What decides a tokenizer: its name, or the texts that one is trained on."""
    spec = preset.data.model_dump(mode="json", include={"tokenizer", "sources", "min_text_length"})
    named = isinstance(preset.data.tokenizer, str)
    return digest({"tokenizer": spec["tokenizer"]} if named else {**spec, "pins": opened.pins()})[:16]
