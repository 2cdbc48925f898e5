"""What a rank on one of several machines keeps of weights, gradients and moments, against what is predicted."""

import json
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.config import load_preset, parse_preset
from engine.config.footprint import GIB, Footprint
from model.transformer import TransformerLM
from tests.helpers.folders import progress, weights
from tests.helpers.hosts import Network, group, problem
from tests.helpers.text import REPOSITORY
from tests.helpers.training import by_step, tiny_values, train_with

WORKERS = REPOSITORY / "tests/helpers/workers"
LARGE = REPOSITORY / "configs" / "05_large.json"


@pytest.mark.slow
@pytest.mark.skipif(problem() is not None, reason=f"hosts of network namespaces: {problem()}")
@pytest.mark.parametrize(("stage", "offload"), [(0, False), (1, False), (2, False), (3, False), (1, True), (2, True)])
def test_two_hosts_of_two_ranks_divide_as_predicted(stage: int, offload: bool, tmp_path: Path):
    script, arguments = str(WORKERS / "shares.py"), ["shares.py", str(stage), str(offload).lower()]
    program = f"sys.argv = {arguments!r}\nrunpy.run_path({script!r}, run_name='__main__')"
    with Network(tmp_path) as network:
        jobs = [host.fork(program, **variables) for host, variables in group(network, 2)]
        timer = threading.Timer(120.0, lambda: [host.signal(signal.SIGKILL) for host in network.hosts])
        timer.start()
        printed = [job.communicate()[0] for job in jobs]
        timer.cancel()
        assert [job.wait() for job in jobs] == [0] * 4, printed[0][-3000:]
        written = [path for host in network.hosts for path in host.folder.glob("shares-*.json")]
        shares = [json.loads(path.read_text()) for path in written]
    assert len(shares) == 4
    for share in shares:
        stepped = share["copy"] + share["gradients"] + share["moments"]
        kept = share["weights"] + (0 if offload else stepped)
        assert kept == pytest.approx(share["predicted"], rel=0.01), share
        copied = 4 if stage in (1, 2) else 0  # at stage 3 the weights themselves are divided
        assert stepped == pytest.approx((12 + copied) * share["parameters"] / (4 if stage else 1), rel=0.01), share


def test_the_large_preset_takes_a_step_on_the_meta_device():
    """28 layers of 2,048: forward and backward with every shape, and no memory. Fake tensors are on the meta device and
    say that they are on the CPU, because autocast knows no meta."""
    preset = load_preset(LARGE)
    with FakeTensorMode():
        model = TransformerLM(preset.model, 50_257, preset.auxiliary)
        ids = torch.zeros(2, preset.model.seq_length, dtype=torch.int64)
        model.checkpoint_activations = preset.train.checkpoint_activations
        model(ids, ids).loss_sum.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert 1.5e9 < model.num_parameters() < 1.6e9
    needs = Footprint(preset.model, model.num_parameters(), 8, 8, checkpointed=True)
    assert needs.lowest_stage(preset.train.zero_stage, 80 * GIB) == 0, "as docs/several-machines.md plans it"


@pytest.mark.slow
def test_the_large_preset_trains_at_stage_3_when_it_is_narrow(topics_folder: Path, tmp_path: Path):
    values = load_preset(LARGE).model_dump(mode="json", by_alias=True)
    tiny = tiny_values(topics_folder)
    values["model"] |= {"hidden_size": 128, "seq_length": 32}
    values["train"] |= tiny["train"] | {"zero_stage": 3, "probe_batch": False, "learning_rate": 2e-3}
    values["data"] = {**tiny["data"], "document_mask": False}
    preset = parse_preset(values)
    events = train_with(2, preset, tmp_path / "checkpoints", 30 * 2 * 512)
    losses = list(by_step(events).values())
    assert len(losses) >= 30 and losses[-1] < losses[0] - 0.3
    assert progress(tmp_path / "checkpoints")["finished"]
    assert sum(".mlp.up.weight" in name for name in weights(tmp_path / "checkpoints")) == 28
