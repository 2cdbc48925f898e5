"""What is checked before a run trains, from top to bottom. Each check ends the start with a sentence and its remedy.

1. settings      that fit one another and this machine; packages that they ask for
2. checkpoints   a folder that can be written, a lineage that fits the preset (resume.py)
3. sources       at least one that can be read and holds text
4. tokenizer     one that can be loaded or trained, and whose ids give the text back
5. memory        for the weights; for a micro-batch once its size is known (setup.py)
6. disk          for the checkpoints of a new model

Then follows advice, which ends nothing.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from engine.checkpoint.folder import CheckpointFolder
from engine.checkpoint.parts import lack_of_room as lack_of_room_for_checkpoints
from engine.checks.epochs import advise_on_epochs
from engine.config import TrainConfig
from engine.data.opening import get_tokenizer, open_cache_on_all_ranks, open_on_all_ranks
from engine.device.memory import require_memory_for_weights
from engine.device.ranks import Ranks
from engine.errors import PresetError, SaveError
from engine.events import EventLog
from engine.run.resume import Start
from engine.trackers import require_packages
from model.config import AuxiliaryConfig
from model.transformer import TransformerLM
from sources.caching import ShardCache, lack_of_room
from sources.config import DataConfig
from sources.loading.loader import BatchShape
from sources.registry import OpenedSources
from sources.rows.tokenizer import TextTokenizer

STATE_COPIES = 3  # of the weights in a checkpoint: themselves and two moments; Muon has one for most


class Checked(NamedTuple):
    """What was opened while it was checked."""

    cache: ShardCache | None
    opened: OpenedSources
    tokenizer: TextTokenizer


def require_settings(train: TrainConfig, ranks: Ranks) -> None:
    """Raise PresetError, on all ranks, for settings that cannot work together or here."""
    if train.forbid_synchronization and train.zero_stage in (3, "auto") and ranks.device.type == "cuda":
        raise PresetError(
            "train.forbid_synchronization: DeepSpeed's stage 3 itself synchronizes a GPU; set train.zero_stage to 2."
        )
    if ranks.world_size % train.expert_parallel_size:
        raise PresetError(
            f"train.expert_parallel_size: {ranks.world_size} processes cannot be divided into groups of "
            f"{train.expert_parallel_size}; start a multiple of that, or set it to 1."
        )
    ranks.on_main(lambda: require_packages(train.log_to))


def preflight(
    data: DataConfig,
    auxiliary: AuxiliaryConfig,
    start: Start,
    shape: BatchShape,
    token_budget: int,
    folder: CheckpointFolder,
    ranks: Ranks,
    log: EventLog,
) -> Checked:
    """Check what a run needs, `start` being what it continues. All ranks must call it.

    Raises PresetError, SourcesFailed, CheckpointError or SaveError, on all ranks alike.
    """
    with log.stage("sources"):
        cache = open_cache_on_all_ranks(data, ranks)
        opened = open_on_all_ranks(data, (start.state or {}).get("pins", {}), cache, ranks, log)
    with log.stage("tokenizer"):
        tokenizer = get_tokenizer(data, start.restored, opened, cache, ranks, log)
    with torch.device("meta"):
        model = TransformerLM(start.model, tokenizer.vocab_size, auxiliary)
    require_memory_for_weights(model, shape)
    size = STATE_COPIES * sum(weight.nbytes for weight in model.parameters())
    ranks.on_main(lambda: _require_room(folder.folder, size, start.is_new, log))
    ranks.on_main(lambda: _advise(data, opened, tokenizer, token_budget, log))
    return Checked(cache, opened, tokenizer)


def _require_room(folder: Path, size: int, is_new: bool, log: EventLog) -> None:
    """Raise SaveError for a new model whose checkpoints have no room; another one trains while its saves wait."""
    if message := lack_of_room_for_checkpoints(folder, size):
        if is_new:
            raise SaveError(message)
        log.write("advice", topic="disk", message=message)


def _advise(
    data: DataConfig, opened: OpenedSources, tokenizer: TextTokenizer, token_budget: int, log: EventLog
) -> None:
    if message := advise_on_epochs(data, opened, tokenizer, token_budget):
        log.write("advice", topic="epochs", message=message)
    if data.cache and (message := lack_of_room(data, token_budget)):
        log.write("advice", topic="disk", message=message)
