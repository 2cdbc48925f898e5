"""How far the engine's losses are from a plain PyTorch loop's on the same batches.

    python -m benchmarks.golden_loss

The figures behind tests/integration/test_golden_loss.py, from the same worker: 50 steps of two passes, some labels
padding.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

WORKER = Path(__file__).parent.parent / "tests" / "engine" / "golden_worker.py"


def main() -> None:
    print(f"torch {torch.__version__}; differences of a step's loss in nats, over 50 steps")
    print(f"{'processes':>9}  {'stage':>5}  {'arithmetic':>10}  {'largest':>9}  {'mean':>9}")
    for processes in (1, 2):
        launcher = [] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "losses.json"
            command = [sys.executable, *launcher, str(WORKER), str(output), "0", "1", "2", "3"]
            environment = {"PYTHONPATH": str(WORKER.parents[2]), "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
            results = json.loads(output.read_text())
        for kind in ("adamw fp32", "adamw bf16", "muon fp32"):
            plain = results[f"plain {kind}"][0]
            for stage in range(4):
                losses = results[f"stage {stage} {kind}"][0]
                apart = [abs(a - b) for a, b in zip(plain, losses, strict=True)]
                mean = sum(apart) / len(apart)
                print(f"{processes:9}  {stage:5}  {kind:>10}  {max(apart):9.1e}  {mean:9.1e}", flush=True)


if __name__ == "__main__":
    main()
