"""Run by hub/test_reader.py in its own process, since the libraries read HF_ENDPOINT when they are imported.

Reads {"specs": [...], "pins": {name: pin}, "probe": bool, "tokenizer": name} from standard input; prints
what opening and reading each spec gave, and the sentence that refused the tokenizer.
"""

import json
import sys
import time

from sources import retries
from sources.config import DataConfig
from sources.readers.hub.reader import HubSource
from sources.registry import probe
from sources.rows.tokenizer import TokenizerError, load_tokenizer
from sources.source import SourceError

SAMPLES = 4  # cursors tried per shard


def resumes_exactly(source) -> bool:
    for shard in range(source.num_shards):
        documents = list(source.read(shard, None))
        for number in range(0, len(documents), max(1, len(documents) // SAMPLES)):
            cursor = json.loads(json.dumps(documents[number][1]))
            if [text for text, _ in source.read(shard, cursor)] != [text for text, _ in documents[number + 1 :]]:
                return False
    return True


def main() -> None:
    retries.FIRST_WAIT = 0.1
    task = json.load(sys.stdin)
    config = DataConfig.model_validate({"sources": task["specs"]})
    answer = {}
    for spec in config.sources:
        begin = time.monotonic()
        try:
            source, failure = HubSource(spec, task.get("pins", {}).get(spec.source_name)), None
        except SourceError as error:
            source, failure = None, error.reason
        found = {"failure": failure, "open_seconds": time.monotonic() - begin}
        if task.get("probe"):
            begin = time.monotonic()
            found |= {"probe": probe(spec, 2.0), "probe_seconds": time.monotonic() - begin}
        if source is not None:
            again = HubSource(spec, json.loads(json.dumps(source.pin())))
            texts, texts_again = (
                [text for shard in range(each.num_shards) for text, _ in each.read(shard, None)]
                for each in (source, again)
            )
            found |= {
                "num_shards": source.num_shards,
                "pin": source.pin(),
                "texts": texts,
                "reopened_equal": texts == texts_again,
                "notices": source.notices,
                "counts": dict(source.counts),
                "resumes": resumes_exactly(source),
            }
        answer[spec.source_name] = found
    if "tokenizer" in task:
        try:
            load_tokenizer(task["tokenizer"])
        except TokenizerError as error:
            answer["tokenizer"] = str(error)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
