"""Downloaded datasets and tokenizers under HF_HUB_OFFLINE, and local folders that go away."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, snapshot_download

from sources.config import HubSpec
from sources.readers.hub.reader import HubSource
from sources.registry import probe
from sources.rows.tokenizer import TextTokenizer, TokenizerError, load_tokenizer, train_bpe
from sources.source import SourceError
from tests.helpers.hub_server import SHA, HubServer, json_gz, parquet, run_worker
from tests.helpers.processes import start
from tests.helpers.text import REPOSITORY

NAMES = ("some/parquet", "some/lines")


def read_all(source: HubSource) -> list[str]:
    return [text for shard in range(source.num_shards) for text, _ in source.read(shard, None)]


@pytest.fixture(scope="module")
def rows(texts) -> list[dict]:
    return [{"text": text[:300]} for text in texts[:120]]


@pytest.fixture(scope="module")
def tokenizer(texts) -> TextTokenizer:
    return train_bpe(iter(texts[:50]), 512)


@pytest.fixture(scope="module")
def story(tmp_path_factory, rows, tokenizer) -> dict:
    """Datasets are read from a hub, downloaded, and read again when the hub is gone."""
    tmp_path = tmp_path_factory.mktemp("cache")
    cache = tmp_path / "hf_home" / "hub"
    specs = {name: {"spec": {"dataset": name}} for name in NAMES}
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        hub.repositories = {
            "some/parquet": {f"data/train-{n:05}-of-00002.parquet": parquet(rows[n::2]) for n in range(2)},
            "some/lines": {f"train-{n:05}-of-00003.json.gz": json_gz(rows[n::3]) for n in range(3)},
            "some/readme": {"README.md": b"# only this is downloaded", "train.parquet": parquet(rows)},
            "models/some/tokenizer": {"tokenizer.json": tokenizer.to_json().encode(), "config.json": b"{}"},
        }
        online = run_worker(tmp_path, hub.url, worker="hub_faults.py", open=specs)
        for name in NAMES:
            snapshot_download(name, repo_type="dataset", endpoint=hub.url, token=False, cache_dir=cache)
        snapshot_download("some/tokenizer", endpoint=hub.url, token=False, cache_dir=cache)
        readme = {"repo_type": "dataset", "endpoint": hub.url, "token": False, "cache_dir": cache}
        hf_hub_download("some/readme", "README.md", **readme)
        url = hub.url
    offline = {"HF_HUB_OFFLINE": "1"}
    pins = {f"pinned {name}": specs[name] | {"pin": online[name]["pin"]} for name in NAMES}
    again = run_worker(
        tmp_path,
        url,
        worker="hub_faults.py",
        environment=offline,
        open=specs | pins | {name: {"spec": {"dataset": name}} for name in ("some/readme", "some/other")},
    )
    return {"online": online, "offline": again, "cache": cache}


@pytest.mark.parametrize("name", NAMES)
def test_a_downloaded_dataset_is_read_without_a_network(story, name):
    online = story["online"][name]
    for found in (story["offline"][name], story["offline"][f"pinned {name}"]):
        assert [[text for text, _ in shard] for shard in found["shards"]] == [
            [text for text, _ in shard] for shard in online["shards"]
        ]
        assert found["pin"] == {"commit": SHA} == online["pin"] and found["fingerprint"] == online["fingerprint"]
        (notice,) = found["notices"]
        assert notice.startswith("HF_HUB_OFFLINE is set, so it is read from the cache, ") and SHA in notice


@pytest.mark.parametrize("name", ["some/readme", "some/other"])
def test_what_is_not_downloaded_says_how_to(story, name):
    reason, transient = story["offline"][name]["refused"]
    assert not transient and f"HF_HUB_OFFLINE is set, and {name} is not in the cache, or not whole" in reason
    assert f"hf download --repo-type dataset {name}" in reason


def test_cursors_of_a_run_with_a_network_hold_without_one(story, monkeypatch):
    for name in NAMES:
        folder = snapshot_download(name, repo_type="dataset", cache_dir=story["cache"], local_files_only=True)
        monkeypatch.setattr("sources.readers.hub.reader.cached_folder", lambda dataset, revision, at=folder: Path(at))
        source = HubSource(HubSpec(type="hf", dataset=name), {"commit": SHA})
        shards = story["online"][name]["shards"]
        for shard, documents in enumerate(shards):
            _, cursor = documents[len(documents) // 2]
            assert len(list(source.read(shard, cursor))) == len(documents) - len(documents) // 2 - 1


def test_the_menu_finds_what_is_downloaded(story, monkeypatch):
    def downloaded(dataset: str, **options) -> str:
        return snapshot_download(dataset, **options, cache_dir=story["cache"])

    monkeypatch.setattr("sources.readers.hub.endpoint.snapshot_download", downloaded)
    assert probe(HubSpec(type="hf", dataset="some/parquet")) is None
    assert "hf download" in (probe(HubSpec(type="hf", dataset="some/other")) or "")


def test_a_downloaded_tokenizer_loads_without_a_network(story, tokenizer):
    """It has no tokenizer_config.json, and nothing has ever asked for one."""
    command = "import sys; from sources.rows.tokenizer import load_tokenizer as l; print(l(sys.argv[1]).vocab_size)"
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(story["cache"].parent)}
    printed, _ = start(command, "some/tokenizer", cwd=REPOSITORY, variables=variables).communicate(timeout=120)
    assert printed.split() == [str(tokenizer.vocab_size)], printed
    with pytest.raises(
        TokenizerError,
        match=r"HF_HUB_OFFLINE is set, and some/other is neither in the cache nor a folder here; .*train_bpe",
    ):
        load_tokenizer("some/other")


@pytest.fixture
def local(tmp_path, rows) -> Path:
    (tmp_path / "local").mkdir()
    for number in range(3):
        (tmp_path / "local" / f"train-{number:05}-of-00003.parquet").write_bytes(parquet(rows[number::3]))
    return tmp_path / "local"


def test_a_file_that_has_gone_from_a_folder_is_named(local, rows):
    source = HubSource(HubSpec(type="hf", dataset=str(local)))
    (local / "train-00001-of-00003.parquet").unlink()
    assert sorted(read_all(source)) == sorted(row["text"] for n in (0, 2) for row in rows[n::3])
    (notice,) = source.notices
    assert "train-00001-of-00003.parquet" in notice and "cannot be read (No such file or directory)" in notice
    assert source.counts == {"files that cannot be opened": 1}


@pytest.mark.parametrize("kind", ["parquet", "lines"])
def test_a_folder_that_has_gone_is_named_and_may_come_back(local, rows, kind, tmp_path):
    if kind == "lines":
        shutil.rmtree(local)
        local.mkdir()
        (local / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = HubSource(HubSpec(type="hf", dataset=str(local)))
    local.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"the folder .*local is not there any more; was it moved") as caught:
        read_all(source)
    assert caught.value.transient and "cannot be reached" not in caught.value.reason
    (tmp_path / "elsewhere").rename(local)
    assert sorted(read_all(source)) == sorted(row["text"] for row in rows)
