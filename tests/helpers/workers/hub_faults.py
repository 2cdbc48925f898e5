"""Run by test_hub_faults.py in a process of its own: reads sources as the loader does, resuming at the cursor.

Reads {"open": {name: {"spec": ..., "pin": ...}}, "unpickle": {name: {"shard": ..., "cursor": ...}}} from standard
input; writes each opened source to NAME.pickle and prints what was read, with a hash for each text.
"""

import functools
import hashlib
import json
import pickle
import sys
from pathlib import Path

import huggingface_hub.hf_file_system as hub_files

from sources import source as source_module
from sources.config import HubSpec
from sources.readers import hub
from sources.source import SourceError

TRIES = 3


def read_with_retries(source, shard: int, cursor) -> tuple[list[list], list[list]]:
    """Return [hash, cursor] of every document of a shard, and [reason, transient] of every failure on the way."""
    documents, failures = [], []
    while len(failures) < TRIES:
        try:
            for text, after in source.read(shard, cursor):
                cursor = json.loads(json.dumps(after))
                documents.append([hashlib.sha1(text.encode()).hexdigest()[:12], cursor])
            break
        except SourceError as error:
            failures.append([error.reason, error.transient])
            if not error.transient:
                break
    return documents, failures


def main() -> None:
    # Shorter waits between tries: the hub client's own are 1 to 8 s.
    source_module.FIRST_WAIT = 0.1
    hub_files.http_backoff = functools.partial(hub_files.http_backoff, base_wait_time=0.01, max_wait_time=0.01)
    task = json.load(sys.stdin)
    answer = {}
    for name, place in task.get("unpickle", {}).items():
        source = pickle.loads(Path(f"{name}.pickle").read_bytes())
        documents, failures = read_with_retries(source, place["shard"], place["cursor"])
        datasets = sys.modules.get("datasets")
        answer[name] = {
            "documents": documents,
            "failures": failures,
            "fingerprint": source.fingerprint(),
            "library_retries": datasets and datasets.config.STREAMING_READ_MAX_RETRIES,
        }
    for name, wanted in task.get("open", {}).items():
        try:
            source = hub.HubSource(HubSpec.model_validate({"type": "hf", **wanted["spec"]}), wanted.get("pin"))
        except SourceError as error:
            answer[name] = {"refused": [error.reason, error.transient]}
            continue
        shards = [read_with_retries(source, shard, None) for shard in range(source.num_shards)]
        Path(f"{name}.pickle").write_bytes(pickle.dumps(source))
        answer[name] = {
            "shards": [documents for documents, _ in shards],
            "failures": [failure for _, failures in shards for failure in failures],
            "notices": source.notices,
            "counts": source.counts,
            "pin": source.pin(),
            "fingerprint": source.fingerprint(),
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
