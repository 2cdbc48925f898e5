"""Text from a snapshot, in a process that imports `model` and nothing else of this project.

    python -m benchmarks.generate SNAPSHOT [PROMPT ...]

Prints what the model writes, how fast, and which of the project's rooms were imported.
"""

import sys
import time
from pathlib import Path

import torch

from model import load

PROMPTS = ("import os\n", "class Stack:\n", "def test_", "    if not isinstance(")


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    begin = time.perf_counter()
    lm = load(Path(sys.argv[1]))
    seconds = time.perf_counter() - begin
    print(f"loaded {lm.model.num_parameters():,} parameters in {seconds:.2f} s, torch {torch.__version__}")
    for prompt in sys.argv[2:] or PROMPTS:
        begin = time.perf_counter()
        text = lm.generate(prompt, max_new_tokens=100, temperature=0.7, top_p=0.9, no_repeat_ngram=8, seed=1)
        seconds = time.perf_counter() - begin
        print(f"\n--- {len(lm.encode(text)) / seconds:.0f} tokens/s\n{prompt}{text}")
        print(f"--- the prompt and its continuation score {lm.score(prompt + text).mean_nll:.3f} nats per token")
    rooms = sorted(room for room in ("engine", "model", "sources", "shard_cache") if room in sys.modules)
    print(f"\nrooms imported: {', '.join(rooms)}")


if __name__ == "__main__":
    main()
