"""This checkout beside another one: the bits of runs, tokens per second, start-up time, peak memory.

    git worktree add ../before 831596a
    python -m benchmarks.paired --other ../before [--rounds 3]

Both train the same small presets (AdamW; Muon with dropout; the lookahead core; curriculum with adaptive sources and
document masks; sequential mixing with worker processes and the shard cache), each in two runs. Then each continues the
other's checkpoints. A digest is of all weights, another of the data state. Speed is that of a model of 2 x 128 on one
thread; start-up is the time until `engine` is imported. The checkouts take turns; medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.helpers.text import REPOSITORY, write_topics

TINY: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 32},
    "train": {
        "per_gpu_batch_size": 8,
        "accumulation_steps": 2,
        "eval_tokens": 20000,
        "eval_interval_tokens": 4096,
        "log_interval_seconds": 1e-9,
        "compile": False,
        "precision": "fp32",
    },
}
CORE = {"enable_policy": True, "enable_value": True, "enable_dynamics": True, "enable_span_contrastive": True}
CURRICULUM = {"enable_curriculum": True, "curriculum_burn_in_tokens": 1000, "curriculum_interval_tokens": 1000}
ADAPTIVE = {"enable_adaptive_sources": True, "adaptive_interval_tokens": 2000}

# Runs in either checkout, whose modules differ: PRESET CHECKPOINTS TOKENS
WORKER = """
import hashlib, json, pathlib, resource, sys, time
begin = time.perf_counter()
import engine
import_seconds = time.perf_counter() - begin
import torch
torch.set_num_threads(1)
preset, folder, tokens = engine.load_preset(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
result = engine.train(preset, token_budget=tokens, checkpoint_dir=folder)
weights, digest = torch.load(result.snapshot, weights_only=True)["model"], hashlib.sha256()
for name in sorted(weights):
    digest.update(name.encode() + weights[name].numpy().tobytes())
newest = max(folder.glob("state/*.pt"), key=lambda path: path.name)
state = json.dumps(json.loads(torch.load(newest, weights_only=True)["data"]), sort_keys=True)
print("RESULT" + json.dumps({
    "weights": digest.hexdigest()[:16],
    "data state": hashlib.sha256(state.encode()).hexdigest()[:16],
    "tokens/s": result.tokens_per_second,
    "import, s": import_seconds,
    "peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def presets(text: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    whole = [{"type": "files", "path": str(text), "glob": "*.txt", "name": "topics"}]
    two = [{"type": "files", "path": str(text), "glob": f"{letter}*.txt", "name": letter} for letter in "as"]

    def preset(sources: list[dict[str, str]], **sections: dict[str, Any]) -> dict[str, Any]:
        values = {**TINY, "data": {"tokenizer": {"train_bpe": 512}, "sources": sources}}
        for section, changes in sections.items():
            values[section] = {**values.get(section, {}), **changes}
        return values

    mixed = {"mix_strategy": "weighted", "source_weights": {"a": 2.0}, "document_mask": True, "packing": "pad"}
    cached = {"mix_strategy": "sequential", "num_workers": 1, "cache": True, "cache_dir": str(scratch / "cache")}
    modern = {"positions": "rotary", "norm": "rms", "dropout": 0.1}
    return {
        "AdamW": preset(whole),
        "Muon, dropout": preset(whole, train={"optimizer": "muon"}, model=modern),
        "lookahead core": preset(whole, auxiliary={**CORE, "rollout_depth": 3, "value_horizons": [4, 16]}),
        "curriculum, adaptive, masks": preset(two, auxiliary=CURRICULUM | ADAPTIVE, data=mixed),
        "sequential, workers, cache": preset(two, data=cached),
    }


def run(root: Path, preset: Path, folder: Path, tokens: int) -> dict[str, Any]:
    """One run in the checkout `root`; what its worker printed, with the seconds of the whole process."""
    begin = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-c", WORKER, str(preset), str(folder), str(tokens)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if finished.returncode:
        raise SystemExit(f"{root}: {(finished.stdout + finished.stderr)[-3000:]}")
    return {**json.loads(finished.stdout.split("RESULT")[1]), "process, s": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed, after one that does not count")
    chosen = parser.parse_args()
    roots = {"here": REPOSITORY, "other": chosen.other.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        text = scratch / "topics"
        text.mkdir()
        write_topics(text)
        print("bits: weights and data state after two runs of 20 steps, and after a third that continues the other's")
        for name, values in presets(text, scratch).items():
            preset = scratch / "preset.json"
            preset.write_text(json.dumps({"name": "small", **values}))
            figures: dict[str, list[dict[str, Any]]] = {}
            for which, root in roots.items():
                own = scratch / which / name.replace(" ", "-")
                figures[which] = [run(root, preset, own, 10240) for _ in range(2)]
            for which, root in roots.items():
                last = next(other for other in roots if other != which)
                figures[which].append(run(root, preset, scratch / last / name.replace(" ", "-"), 10240))
            digests = {
                which: [(one["weights"], one["data state"]) for one in results] for which, results in figures.items()
            }
            same = "the same" if digests["here"] == digests["other"] else f"DIFFERENT: {digests}"
            print(f"  {name:32}{same}", flush=True)
        size = {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "seq_length": 128}
        preset.write_text(json.dumps({"name": "speed", **presets(text, scratch)["AdamW"], "model": size}))
        measured: dict[str, list[dict[str, Any]]] = {which: [] for which in roots}
        for number in range(chosen.rounds + 1):
            for which, root in roots.items():
                figures_of_round = run(root, preset, scratch / f"speed-{which}-{number}", 40 * 2048)
                if number:
                    measured[which].append(figures_of_round)
        print(f"\n{'median of ' + str(chosen.rounds):22}{'here':>12}{'other':>12}{'here / other':>16}")
        for figure in ("tokens/s", "import, s", "process, s", "peak memory, MiB"):
            here, other = (statistics.median(one[figure] for one in measured[which]) for which in roots)
            print(f"{figure:22}{here:12,.2f}{other:12,.2f}{here / other:16.3f}")


if __name__ == "__main__":
    main()
