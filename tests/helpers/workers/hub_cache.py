"""Run by hub/test_reader.py in its own process: batches of a cached hub dataset by a worker process, in two starts.

Reads {"dataset": name, "tokenizer": [tokenizer.json, end id], "batches": [of the first start, of the second]} from
standard input; prints the rows of each start and of one without a cache, and the kind of source that each start opened.
"""

import json
import sys
from itertools import islice

from sources.caching import open_cache
from sources.config import DataConfig
from sources.loading.loader import BatchShape, Loader, LoaderOptions
from sources.registry import open_sources
from sources.rows.tokenizer import TextTokenizer


def main() -> None:
    task = json.load(sys.stdin)
    spec = {"type": "hf", "dataset": task["dataset"]}
    tokenizer = TextTokenizer.from_json(*task["tokenizer"])
    starts, kinds = [], []
    first, second = task["batches"]
    for cached, number in ((True, first), (True, second), (False, second)):
        config = DataConfig(sources=[spec], cache=cached, cache_dir="cache")
        cache = open_cache(config)
        opened = open_sources(config, cache=cache)
        kinds += [type(source).__name__ for source in opened.sources.values()]
        shape = BatchShape(micro_batch_size=16, grad_accumulation_steps=1, seq_length=32)
        loader = Loader(opened, config, tokenizer, shape, LoaderOptions(num_workers=1, cache=cache))
        starts.append([batch.input_ids.tolist() for batch in islice(loader, number)])
        loader.close()
    print(json.dumps({"starts": starts, "kinds": kinds}))


if __name__ == "__main__":
    main()
