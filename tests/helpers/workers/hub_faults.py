"""Run by test_hub_faults.py in a process of its own: reads sources as the loader does, resuming at the cursor.

Reads {"open": {name: {"spec": ..., "pin": ...}}, "unpickle": {name: {"shard": ..., "cursor": ...}}} from standard
input, with "patience" for how many seconds a source may fail; writes each opened source to NAME.pickle and prints what
was read, with a hash for each text.
"""

import hashlib
import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sources import retries
from sources.config import HubSpec
from sources.readers.hub import client, reader
from sources.source import SourceError

PATIENCE = 1.0  # seconds, of many tries


def tried(work: Callable[[], Any], patience: float) -> tuple[Any, list[list]]:
    """Return what `work` does, None where it fails for ever, and [reason, transient] of every failure on the way."""
    failures, tries = [], retries.Retries("source", patience)
    while True:
        try:
            return work(), failures
        except SourceError as error:
            failures.append([error.reason, error.transient])
            try:
                tries.wait(error)
            except SourceError:
                return None, failures


def read_with_retries(source, shard: int, cursor, patience: float) -> tuple[list[list], list[list]]:
    """Return [hash, cursor] of every document of a shard, and [reason, transient] of every failure on the way."""
    documents = [["", cursor]]

    def read_on() -> None:
        for text, after in source.read(shard, documents[-1][1]):
            documents.append([hashlib.sha1(text.encode()).hexdigest()[:12], json.loads(json.dumps(after))])

    _, failures = tried(read_on, patience)
    return documents[1:], failures


def main() -> None:
    # Shorter waits between tries: the hub client's own are 1 to 8 s.
    retries.FIRST_WAIT = 0.02
    client.DROPPED_WAIT = 0.01
    task = json.load(sys.stdin)
    answer = {}
    for name, place in task.get("unpickle", {}).items():
        source = pickle.loads(Path(f"{name}.pickle").read_bytes())
        documents, failures = read_with_retries(source, place["shard"], place["cursor"], PATIENCE)
        datasets = sys.modules.get("datasets")
        answer[name] = {
            "documents": documents,
            "failures": failures,
            "fingerprint": source.fingerprint(),
            "library_retries": datasets and datasets.config.STREAMING_READ_MAX_RETRIES,
        }
    for name, wanted in task.get("open", {}).items():
        spec = HubSpec.model_validate({"type": "hf", **wanted["spec"]})
        patience = wanted.get("patience", PATIENCE)
        source, opening = tried(partial(reader.HubSource, spec, wanted.get("pin")), patience)
        if source is None:
            answer[name] = {"refused": opening[-1]}
            continue
        shards = [read_with_retries(source, shard, None, patience) for shard in range(source.num_shards)]
        Path(f"{name.replace('/', ' ')}.pickle").write_bytes(pickle.dumps(source))
        answer[name] = {
            "shards": [documents for documents, _ in shards],
            "opening": opening,
            "failures": [failure for _, failures in shards for failure in failures],
            "notices": source.notices,
            "counts": source.counts,
            "pin": source.pin(),
            "fingerprint": source.fingerprint(),
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
