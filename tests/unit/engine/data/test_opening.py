"""Sources and tokenizer at a start: what is dropped, what ends the run, what is trained once and kept."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine.checkpoint.folder import RestoredCheckpoint
from engine.checkpoint.load import VerifiedFile
from engine.data.opening import get_tokenizer, open_cache_on_all_ranks, open_on_all_ranks
from engine.device.ranks import Ranks
from engine.errors import CheckpointError, PresetError, SourcesFailed
from engine.events import EventLog
from engine.screen.console import Console
from model.snapshot import Snapshot
from sources.caching import ShardCache
from sources.config import DataConfig
from sources.registry import OpenedSources
from tests.helpers.processes import run_ranks

ALONE = Ranks(0, 1, torch.device("cpu"), None)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    opened = EventLog(tmp_path, Console())
    yield opened
    opened.close()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: " ".join(capsys.readouterr().out.split())


@pytest.fixture
def data(topics_folder: Path) -> Callable[..., DataConfig]:
    def make(*more: dict, **changes) -> DataConfig:
        topics = {"type": "files", "path": str(topics_folder), "glob": "*.txt", "name": "topics"}
        return DataConfig(**{"sources": [topics, *more], "tokenizer": {"train_bpe": 300}} | changes)

    return make


def missing(tmp_path: Path) -> dict:
    return {"type": "files", "path": str(tmp_path / "none"), "name": "missing"}


def test_a_source_that_fails_is_dropped_with_a_warning(data, tmp_path: Path, log, said):
    opened = open_on_all_ranks(data(missing(tmp_path)), {}, None, ALONE, log)
    assert list(opened.sources) == ["topics"] and list(opened.failures) == ["missing"]
    assert f"warning: source missing is dropped: {tmp_path / 'none'} does not exist" in said()


def test_notices_are_shown_and_taken(tmp_path: Path, data, log, said):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.txt").write_text("Now is better than never. " * 9)
    opened = open_on_all_ranks(data({"type": "files", "path": str(tmp_path / "few")}), {}, None, ALONE, log)
    assert "it is small, with 1 text to train on" in said()
    assert not any(source.notices for source in opened.sources.values())


def test_without_any_source_the_run_ends(tmp_path: Path, log):
    alone = DataConfig(sources=[missing(tmp_path)])
    with pytest.raises(
        SourcesFailed, match=r"Every source failed: missing: .*Correct what it names, check the network, or"
    ):
        open_on_all_ranks(alone, {}, None, ALONE, log)


ELSEWHERE = """
import os, sys
from pathlib import Path
from engine.data.opening import open_on_all_ranks
from engine.device.ranks import join, leave
from engine.errors import RunError
from engine.events import EventLog
from engine.screen.console import Console
from sources.config import DataConfig
ranks = join()
os.chdir(Path(sys.argv[1]) / str(ranks.rank))  # as on another machine
data = DataConfig(sources=[{"type": "files", "path": "notes"}])
try:
    open_on_all_ranks(data, {}, None, ranks, EventLog(Path(), Console(enabled=False)))
except RunError as error:
    everyone = ranks.gather([type(error).__name__, error.status, str(error)])
    if ranks.is_main:
        print(everyone[0] == everyone[1], everyone[0])
leave()
os._exit(0)
"""


def test_a_rank_that_cannot_read_ends_all(tmp_path: Path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    (tmp_path / "0" / "notes").mkdir()
    (tmp_path / "0" / "notes" / "a.txt").write_text("Simple is better than complex. " * 5)
    printed = run_ranks(ELSEWHERE, str(tmp_path), processes=2, timeout=120)
    assert printed.startswith("True ['SourcesFailed', 3,"), printed
    assert "Rank 1 cannot read what rank 0 can" in printed and "notes does not exist" in printed


def open_all(config: DataConfig, log: EventLog) -> OpenedSources:
    return open_on_all_ranks(config, {}, None, ALONE, log)


def test_a_folder_that_is_no_cache_ends_the_start(data, topics_folder: Path, tmp_path: Path):
    assert open_cache_on_all_ranks(data(), ALONE) is None
    opened = open_cache_on_all_ranks(data(cache=True, cache_dir=str(tmp_path / "cache")), ALONE)
    assert opened.folder == tmp_path / "cache"
    with pytest.raises(PresetError, match=r"data\.cache_dir: .* holds other things than a cache \(.*\.txt"):
        open_cache_on_all_ranks(data(cache=True, cache_dir=str(topics_folder)), ALONE)


def test_a_tokenizer_is_trained_once_for_the_same_text(data, tmp_path: Path, log, said):
    """And proved equal to the faster encoder once."""
    cache = ShardCache(tmp_path / "cache", 1.0)
    opened = open_all(data(), log)
    first = get_tokenizer(data(), None, opened, cache, ALONE, log)
    shown = said()
    assert "Training a byte-level BPE tokenizer with 300 tokens on the sources' text, at most 32 MB" in shown
    assert "Tokenizer: tiktoken encodes here, proved equal on" in shown
    assert first.vocab_size == 300 and first.is_fast
    again = get_tokenizer(data(), None, opened, cache, ALONE, log)
    assert said() == "" and again.to_json() == first.to_json() and again.is_fast
    shorter = data(min_text_length=7)
    get_tokenizer(shorter, None, open_all(shorter, log), cache, ALONE, log)
    assert "Training a byte-level BPE tokenizer" in said()


def test_a_tokenizer_folder_is_read_unless_it_is_gone(data, tmp_path: Path, log, said):
    """Then the cached one is used."""
    cache, folder = ShardCache(tmp_path / "cache", 1.0), tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    sizes, own = [], data(tokenizer=str(folder))
    for size in (300, 310, None):
        if size is None:
            shutil.rmtree(folder)
        else:
            made = get_tokenizer(data(tokenizer={"train_bpe": size}), None, open_all(data(), log), None, ALONE, log)
            (folder / "tokenizer.json").write_text(made.to_json())
        said()
        sizes.append(get_tokenizer(own, None, open_all(data(), log), cache, ALONE, log).vocab_size)
        assert ("does not exist; the cached one is used" in said()) == (size is None)
    assert sizes == [300, 310, 310]


def restored(tokenizer: str | None) -> RestoredCheckpoint:
    snapshot = Snapshot({}, {"eos_token_id": 0}, tokenizer)
    return RestoredCheckpoint(snapshot, VerifiedFile(Path("lm_current.pth"), "", None), None, None, [])


def test_a_lineage_keeps_its_own_tokenizer(data, log, said):
    opened = open_all(data(), log)
    own = get_tokenizer(data(), None, opened, None, ALONE, log)
    said()
    larger = data(tokenizer={"train_bpe": 400})
    kept = get_tokenizer(larger, restored(own.to_json()), opened, None, ALONE, log)
    assert kept.vocab_size == 300 and kept.to_json() == own.to_json() and "Training" not in said()
    bare = get_tokenizer(larger, restored(None), opened, None, ALONE, log)  # a bare state dict has none
    assert bare.vocab_size == 400


def test_a_tokenizer_that_cannot_be_had_says_why(data, tmp_path: Path, log):
    opened = open_all(data(), log)
    with pytest.raises(CheckpointError, match=r"lm_current\.pth: The tokenizer's JSON text cannot be read: .*backup"):
        get_tokenizer(data(), restored("{}"), opened, None, ALONE, log)
    nowhere = data(tokenizer=str(tmp_path / "none"))
    with pytest.raises(PresetError, match=r"data\.tokenizer: .*none\" cannot be loaded: the folder .* does not exist"):
        get_tokenizer(nowhere, None, opened, None, ALONE, log)
    nothing = data(min_text_length=10**6)
    with pytest.raises(SourcesFailed, match="there is no text to train a tokenizer on; check the sources"):
        get_tokenizer(nothing, None, opened, None, ALONE, log)
