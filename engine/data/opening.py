"""Opens the sources and gets the tokenizer on rank 0, and gives every rank the same."""

from pathlib import Path
from typing import Any, TypedDict, cast

from engine.checkpoint.folder import RestoredCheckpoint
from engine.device.ranks import Ranks
from engine.errors import CheckpointError, PresetError, SourcesFailed
from engine.events import EventLog
from model.snapshot.tokenizer import tokenizer_problem
from sources.caching import NotACache, ShardCache, open_cache, read_record, write_record
from sources.config import DataConfig, TrainBPE
from sources.held_out import sample_training_texts
from sources.readers.hub.endpoint import is_local
from sources.registry import AllSourcesFailed, OpenedSources, open_sources
from sources.retries import Announce, Retries
from sources.rows.pipeline import split_text
from sources.rows.tokenizer import TextTokenizer, TokenizerError, load_tokenizer, train_bpe
from storage import digest

# A 16k vocabulary is stable well before this much text, and it trains in seconds.
TOKENIZER_TRAINING_BYTES = 32_000_000
ENCODER_CHECK_BYTES = 2_000_000  # of text on which a faster encoder must give the tokenizer's own ids


class TokenizerParts(TypedDict):
    """TextTokenizer.from_json's arguments, as they travel between ranks and are cached."""

    text: str
    eos_id: int
    pad_id: int
    fast: bool


def announce_to(log: EventLog) -> Announce:
    """Return what writes a source's event to `log`."""
    return lambda name, what, message: log.write("source", name=name, what=what, message=message)


def open_cache_on_all_ranks(data: DataConfig, ranks: Ranks) -> ShardCache | None:
    """Open each rank's shard cache, if the preset asks for one. Raises PresetError on all ranks."""
    cache, refusal = None, None
    try:
        cache = open_cache(data)
    except NotACache as error:
        refusal = f"data.cache_dir: {error}"
    for refused in filter(None, ranks.gather(refusal)):
        raise PresetError(refused)
    return cache


def open_on_all_ranks(
    data: DataConfig, pins: dict[str, Any], cache: ShardCache | None, ranks: Ranks, log: EventLog
) -> OpenedSources:
    """Open the sources on rank 0, at the saved `pins` where there are any, and on the others as rank 0 has them.

    Raises SourcesFailed when none can be opened, or when another rank cannot read what rank 0 can.
    """
    opened: OpenedSources | None = None

    def open_here() -> dict[str, Any]:
        nonlocal opened
        opened = open_sources(data, pins or None, only_pinned=False, cache=cache, announce=announce_to(log))
        for name, reason in opened.failures.items() if opened.sources else ():  # else the error below has all reasons
            log.warn(f"source {name} is dropped: {reason}")
        for name, source in opened.sources.items():
            while source.notices:
                log.say(f"source {name}: {source.notices.pop(0)}")
        if not opened.sources:
            raise SourcesFailed(
                f"{AllSourcesFailed(opened.failures)} Correct what it names, check the network, or choose a preset "
                "whose text is on this machine, such as 02_offline_python."
            )
        return opened.pins()

    opened_pins = ranks.on_main(open_here)
    failures: dict[str, str] = {}
    if opened is None:  # not rank 0
        opened = open_sources(data, opened_pins, cache=cache)
        failures = {name: opened.failures.get(name, "not opened") for name in opened_pins.keys() - opened.sources}
        if ranks.hosts:
            changed = [name for name, source in opened.sources.items() if source.pin() != opened_pins[name]["source"]]
            failures |= dict.fromkeys(changed, "it holds other files there")
    for rank, failed in enumerate(ranks.gather(failures)):
        if failed:
            reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
            remedy = " Copy it there, or put it where all machines read it." if ranks.hosts else ""
            raise SourcesFailed(
                f"Rank {ranks.place(rank)} cannot read what rank {ranks.place(0)} can: {reasons}.{remedy}"
            )
    return opened


def get_tokenizer(
    data: DataConfig,
    restored: RestoredCheckpoint | None,
    opened: OpenedSources,
    cache: ShardCache | None,
    ranks: Ranks,
    log: EventLog,
) -> TextTokenizer:
    """Return the lineage's own tokenizer from its `restored` snapshot, else the preset's, loaded or trained on rank 0.

    Where a faster encoder gives the same ids on the run's own text, it is used. Raises PresetError, SourcesFailed or
    CheckpointError on all ranks.
    """

    def make() -> TokenizerParts:
        path = cache.remember(f"tokenizer-{_cache_key(data, opened)}.json") if cache is not None else None
        cached = cast(TokenizerParts | None, read_record(path))
        if restored is not None and restored.snapshot.tokenizer is not None:
            tokenizer = _from_snapshot(restored)
        elif cached is not None and not _may_have_changed(data.tokenizer):
            tokenizer = TextTokenizer.from_json(**{**cached, "fast": False})
            if isinstance(data.tokenizer, str) and is_local(data.tokenizer):
                log.say(f"Tokenizer: the folder {data.tokenizer} does not exist; the cached one is used.")
        else:
            tokenizer = _load_or_train(data, opened, log)
        parts = TokenizerParts(text=tokenizer.to_json(), eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, fast=False)
        if cached is not None and cached["text"] == parts["text"]:
            return {**parts, "fast": cached["fast"]}
        texts = sample_training_texts(opened.sources, data, ENCODER_CHECK_BYTES, announce_to(log))
        sample = [part for text in texts for part in split_text(text)]
        announcement = tokenizer.use_fast_encoder(sample)
        if announcement:
            log.say(f"Tokenizer: {announcement}.")
        parts["fast"] = announcement is not None
        if path is not None and sample:
            write_record(path, parts)
        return parts

    return TextTokenizer.from_json(**ranks.on_main(make))


def _from_snapshot(restored: RestoredCheckpoint) -> TextTokenizer:
    snapshot = restored.snapshot
    assert snapshot.tokenizer is not None and snapshot.config is not None
    try:
        tokenizer = TextTokenizer.from_json(snapshot.tokenizer, snapshot.config["eos_token_id"])
    except TokenizerError as error:
        raise CheckpointError(f"{restored.path}: {error}; restore a backup.") from None
    if problem := tokenizer_problem(snapshot.tokenizer):
        raise CheckpointError(f"{restored.path}: its tokenizer {problem}; restore a backup.")
    return tokenizer


def _load_or_train(data: DataConfig, opened: OpenedSources, log: EventLog) -> TextTokenizer:
    spec = data.tokenizer
    if not isinstance(spec, TrainBPE):
        try:
            tokenizer = load_tokenizer(spec, Retries.before_training(spec, data.retry_minutes, announce_to(log)))
        except TokenizerError as error:
            raise PresetError(str(error)) from None
        # How a text grows comes first: the other question encodes.
        if problem := tokenizer_problem(tokenizer.to_json()) or tokenizer.problem():
            raise PresetError(f'data.tokenizer: "{spec}" {problem}.')
        return tokenizer
    log.say(
        f"Training a byte-level BPE tokenizer with {spec.train_bpe:,} tokens on the sources' text, at most "
        f"{TOKENIZER_TRAINING_BYTES // 1_000_000} MB of it..."
    )
    try:
        texts = sample_training_texts(opened.sources, data, TOKENIZER_TRAINING_BYTES, announce_to(log))
        return train_bpe(texts, spec.train_bpe)
    except TokenizerError as error:
        raise SourcesFailed(str(error)) from None


def _may_have_changed(spec: str | TrainBPE) -> bool:
    """Whether a tokenizer must be read although one of its name is cached."""
    return isinstance(spec, str) and Path(spec).expanduser().is_dir()


def _cache_key(data: DataConfig, opened: OpenedSources) -> str:
    """A named tokenizer is cached by its name, a trained one by the texts it is trained on."""
    spec = data.model_dump(mode="json", include={"tokenizer", "sources", "min_text_length"})
    named = isinstance(data.tokenizer, str)
    return digest({"tokenizer": spec["tokenizer"]} if named else {**spec, "pins": opened.pins()})[:16]
