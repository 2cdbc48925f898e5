"""Runs of main.py on a hub, and what their events say."""

import json
import time
from pathlib import Path

from engine.events import read
from tests.helpers.hub_server import HubServer
from tests.helpers.training import tiny_values

QUESTIONS = {
    "type": "hf",
    "dataset": "sentence-transformers/natural-questions",
    "fields": ["question", "answer"],
    "format": "Q: {question}\nA: {answer}",
    "name": "questions",
}


def on_hub(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return settings | {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_OFFLINE": "0"}


def write_preset(home: Path, topics_folder: Path, sources: list, **sections) -> None:
    # Steps large enough to use up what was read ahead within seconds, told once a second.
    train = {"per_gpu_batch_size": 64, "log_interval_seconds": 0.5, "eval_interval_tokens": 10**7}
    values = tiny_values(topics_folder, train=train, **sections)
    values["data"]["sources"] = sources
    (home / "configs" / "00_tiny.json").write_text(json.dumps(values))


def wait_for(home: Path, condition, seconds: float = 90) -> list[dict]:
    """Wait until the run's metrics fulfil a condition; returns them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        events = read(home / "checkpoints")
        if condition(events):
            return events
        time.sleep(0.2)
    raise AssertionError([event for event in read(home / "checkpoints") if event["event"] != "step"])


def of(events: list[dict], what: str) -> list[dict]:
    return [event for event in events if event["event"] == "source" and event["what"] == what]
