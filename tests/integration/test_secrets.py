"""A run that is given secrets, and meets failures that name them, shows and keeps none."""

import json
from pathlib import Path

import pytest

from engine.config import load_preset
from engine.errors import PresetError
from engine.events import read
from tests.helpers.hub_runs import QUESTIONS, of, on_hub, wait_for, write_preset
from tests.helpers.hub_server import Fault, HubServer, parquet
from tests.helpers.processes import start
from tests.helpers.text import REPOSITORY
from tests.helpers.training import start_main

TOKEN = "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"
PASSWORD = "sesame-open-up"

HASTY_MAIN = f"""
import runpy, sys
from sources import retries
retries.TRYING_SECONDS = 2.0
sys.argv = ["main.py"]
runpy.run_path({str(REPOSITORY / "main.py")!r}, run_name="__main__")
"""


def files_with(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_token_is_in_no_output_and_no_file(workers: int, hub: HubServer, home: Path, topics_folder, tmp_path: Path):
    # A column that is called like the token: its name is in the reason why the source cannot be read.
    hub.repositories["some/columns"] = {"data/train-0.parquet": parquet([{TOKEN: "text"}] * 20)}
    sources = [QUESTIONS, {"type": "hf", "dataset": "some/columns", "name": "columns"}]
    cache = {"cache": True, "cache_dir": str(home / "cache")}
    data = {"tokenizer": {"train_bpe": 512}, "retry_minutes": 0.05, "num_workers": workers, **cache}
    write_preset(home, topics_folder, sources, data=data)
    process = start_main(home, **on_hub(hub, tmp_path), HF_TOKEN=TOKEN)
    process.stdin.close()
    wait_for(home, lambda events: sum(event["event"] == "step" for event in events) > 1)
    hub.faults.append(Fault("/resolve/", times=10**9, status=503, headers={"X-Error-Message": f"not {TOKEN}"}))
    wait_for(home, lambda events: of(events, "retry"))
    output = process.stdout.read()
    assert process.wait(60) == 3, output
    assert "hf_***" in output and "questions is no longer read" in output
    assert f"Bearer {TOKEN}" in hub.authorizations
    assert (home / "checkpoints" / "lm_current.pth").exists() and list((home / "cache").rglob("*.tar"))
    assert TOKEN not in output and files_with(tmp_path, TOKEN) == []


def test_a_password_in_an_address_is_in_no_output_and_no_file(
    hub: HubServer, home: Path, topics_folder, tmp_path: Path
):
    write_preset(home, topics_folder, [QUESTIONS], data={"tokenizer": {"train_bpe": 512}})
    hub.faults.append(Fault("/api/", times=10**9, status=503))
    address = hub.url.replace("http://", f"http://someone:{PASSWORD}@")
    process = start(HASTY_MAIN, cwd=home, variables={**on_hub(hub, tmp_path), "HF_ENDPOINT": address})
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 3, output
    assert "questions: http://***@127.0.0.1" in output
    assert of(read(home / "checkpoints"), "retry"), "there was a pause to speak of"
    assert PASSWORD not in output and files_with(tmp_path, PASSWORD) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("data.sources.0.dataset", TOKEN),
        ("data.sources.0.path", "https://someone:pass@example.org/owner/name"),
        ("description", f"read with {TOKEN}"),
        ("data.sources.0.hf_***", {}),
    ],
)
def test_a_preset_with_a_secret_is_refused_without_showing_it(place: str, value, home: Path, topics_folder: Path):
    write_preset(home, topics_folder, [{"type": "hf", "dataset": "a/b"}])
    path = home / "configs" / "00_tiny.json"
    preset = json.loads(path.read_text())
    *keys, last = place.replace("hf_***", TOKEN).split(".")
    section = preset
    for key in keys:
        section = section[int(key) if key.isdigit() else key]
    section[last] = value
    path.write_text(json.dumps(preset))
    with pytest.raises(PresetError) as refused:
        load_preset(path)
    sentence = f"{path}: {place}: holds a hub token or a password; take it out and set HF_TOKEN, or log in"
    assert str(refused.value).startswith(sentence)
