"""The cache of compiled code: begun anew after a kill, left alone while others use it; what is compiled, how often."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import train
from engine.config import TrainConfig
from engine.device import deepspeed_engine
from engine.device.compiling import MARKER, VARIABLE, CompileCache, choose_compile, compile_model
from engine.device.ranks import Ranks, join
from engine.errors import PresetError
from engine.events import EventLog
from engine.run.stability import StabilityGuard
from engine.run.step import StepRunner
from engine.screen.console import Console
from model import ModelConfig, TransformerLM
from sources.loading.loader import Batch, BatchShape
from tests.helpers.training import TOKENS_PER_STEP

ALONE = Ranks(0, 1, torch.device("cpu"), None)
LOG = EventLog(Path(), Console())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, with something compiled in it."""
    folder = tmp_path / "compiled"
    folder.mkdir(mode=0o700)
    (folder / "ab").mkdir()
    (folder / "ab" / "library.so").write_bytes(b"")
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def markers(folder: Path) -> list[Path]:
    return list(folder.glob(f"{MARKER}*"))


def test_what_was_compiled_in_peace_is_kept(cache: Path):
    compiling = CompileCache(ALONE)
    assert os.environ[VARIABLE] == str(cache) and len(markers(cache)) == 1
    compiling.done()
    compiling.done()
    compiling.close()
    again = CompileCache(ALONE)
    assert (cache / "ab" / "library.so").exists() and os.environ[VARIABLE] == str(cache)
    again.close()


def test_after_a_kill_the_cache_begins_anew(cache: Path):
    CompileCache(ALONE).close()  # without being done, which is all that a killed process leaves
    assert len(markers(cache)) == 1
    compiling = CompileCache(ALONE)
    assert [path.name[: len(MARKER)] for path in cache.iterdir()] == [MARKER]
    compiling.close()


def test_nothing_is_removed_under_a_process_that_compiles(cache: Path):
    CompileCache(ALONE).close()
    with (cache / f"{MARKER}of-another").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        compiling = CompileCache(ALONE)
    elsewhere = Path(os.environ[VARIABLE])
    assert elsewhere != cache and len(markers(elsewhere)) == 1 and (cache / "ab" / "library.so").exists()
    compiling.close()
    assert os.environ[VARIABLE] == str(cache)


@pytest.mark.parametrize("kind", ["others may write there", "a link", "a file"])
def test_code_is_only_loaded_from_where_nobody_else_writes(cache: Path, tmp_path: Path, kind: str, monkeypatch):
    if kind == "others may write there":
        cache.chmod(0o777)
    else:
        monkeypatch.setenv(VARIABLE, str(tmp_path / "x"))
        (tmp_path / "x").symlink_to(cache) if kind == "a link" else (tmp_path / "x").write_text("")
    compiling = CompileCache(ALONE)
    elsewhere = Path(os.environ[VARIABLE])
    assert elsewhere not in (cache, tmp_path / "x") and elsewhere.stat().st_mode & 0o777 == 0o700
    compiling.close()


def test_without_room_for_a_compiler_it_trains_uncompiled(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert choose_compile("auto", 1, ALONE, LOG) is None
    assert "torch.compile is not available here" in capsys.readouterr().out
    with pytest.raises(PresetError, match=r"train\.compile is true but"):
        choose_compile(True, 1, ALONE, LOG)


def test_stage_3_is_not_compiled_and_that_is_said(tiny, tmp_path: Path, capsys):
    result = train(
        tiny(train={"zero_stage": 3, "compile": "auto"}), token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path
    )
    assert result.tokens == 2 * TOKENS_PER_STEP and "ZeRO-3 is not compiled" in capsys.readouterr().out
    with pytest.raises(PresetError, match=r"true but ZeRO-3 is not compiled; set it to \"auto\""):
        choose_compile(True, 3, ALONE, LOG)


OPTIONS = {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu"}


@pytest.mark.parametrize(("options", "document_mask"), [({}, False), (OPTIONS, False), (OPTIONS, True)])
def test_a_step_is_one_graph_in_bf16_and_compiled_once(options: dict, document_mask: bool):
    torch._dynamo.reset()
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    shape = ModelConfig(hidden_size=64, num_layers=2, num_heads=2, seq_length=32, **options)
    engine = deepspeed_engine.initialize(
        TransformerLM(shape, 512), TrainConfig(), BatchShape(4, 2, 32), join(), bf16=True
    )
    assert compile_model(engine, backend=counting, fullgraph=True) == 1
    guard, runner = StabilityGuard("log", 10), StepRunner(engine, ALONE, 1, 1.0, document_mask)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(4):
            ids = torch.randint(512, (2, 4, 33), generator=torch.Generator().manual_seed(number))
            segments = (torch.arange(32) > 4 + 7 * number).int().expand(2, 4, 32)
            sources = torch.zeros(2, 4, dtype=torch.int64)
            batch = Batch(ids[..., :-1], ids[..., 1:], segments, sources, 256, number, {}, [])
            step = runner.run(batch, 256, guard)
            assert not step.skipped
    engine.destroy()
    assert len(graphs) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_run_in_cuda_graphs_is_the_run_without(tiny, tmp_path: Path):
    """To what a GPU's own order of sums leaves open; evaluations, two passes a step and no waiting among them."""
    graphs = {
        "compile": True,
        "accumulation_steps": 2,
        "forbid_synchronization": True,
        "eval_interval_tokens": TOKENS_PER_STEP,
    }
    losses = []
    for name, changes in {"graphs": graphs, "none": graphs | {"compile": False}}.items():
        result = train(tiny(train=changes), token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / name)
        losses.append(result.eval_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
