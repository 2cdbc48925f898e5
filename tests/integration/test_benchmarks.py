"""The benchmarks can be run by anyone: each says how, and the shorter ones are run here as small as they go."""

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import variants
from benchmarks.shapes_fit import Law, Run, fit, resampled
from benchmarks.variants_figures import interval, loss_at, time_to
from tests.helpers.text import REPOSITORY

WITHOUT_A_TABLE = "train_speed_workers"  # what the processes of train_speed run
RUN_BY_HAND = sorted(
    path.stem
    for path in (REPOSITORY / "benchmarks").glob("*.py")
    if "def main(" in path.read_text(encoding="utf-8") and path.stem != WITHOUT_A_TABLE
)


@pytest.mark.parametrize("name", RUN_BY_HAND)
def test_says_how_it_is_run(name: str):
    module = importlib.import_module(f"benchmarks.{name}")
    assert f"\n    python -m benchmarks.{name}" in module.__doc__


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks" / "results").iterdir()), ids=lambda path: path.stem)
def test_results_stand_beside_their_command(path: Path):
    assert f"$ python -m benchmarks.{path.stem}" in path.read_text(encoding="utf-8")


def run(name: str, *arguments: object) -> str:
    """What the benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def row(printed: str, label: str) -> list[str]:
    """The first line that begins with `label`, as words after it."""
    return next(line for line in printed.splitlines() if line.strip().startswith(label + " ")).split()[1:]


def test_a_law_of_shapes_is_found_again():
    law = Law((math.log(0.9), 5.0, 0.4, 4.0, 0.35))
    sizes = [(parameters, tokens) for parameters in (2e6, 6e6, 2e7) for tokens in (5e5, 1e6, 4e6)]
    runs = [Run(*size, law.bits(*size) * (1.002 if number % 2 else 0.998)) for number, size in enumerate(sizes)]
    found = fit(runs)
    assert found.error(runs) < 0.01
    after = sorted(each.bits(6e6, 1e8) for each in resampled(runs, found, 50))
    assert after[0] < law.bits(6e6, 1e8) < after[-1]
    exact = [Run(*size, law.bits(*size)) for size in sizes]
    assert fit(exact).bits(6e6, 1e8) == pytest.approx(law.bits(6e6, 1e8), abs=0.005)


@pytest.mark.slow
def test_shapes_trains_and_fits_a_law(tmp_path: Path):
    shapes = ("--shapes", "64x1,64x2@32768,128x1", "--tokens", "16384,32768,49152", "--of", "now", "--text", "python")
    printed = run("shapes", tmp_path, *shapes, "--rounds", 1)
    assert "not finished" not in printed and "residuals of" in printed and "a law of the others is" in printed
    assert row(printed, "2 x 64")[-1] == "-" and float(row(printed, "1 x 64")[-1]) > 0
    after = row(printed[printed.index("after 100 M tokens") :], "1 x 128")
    assert float(after[2]) > 0 and after[3].startswith("[")


@pytest.mark.slow
def test_variants_trains_and_compares(tmp_path: Path):
    printed = run("variants", tmp_path, "--of", "adamw,all@0.5", "--seeds", "0", "--tokens", 32_768, "--rounds", 1)
    whole, half = row(printed, "adamw"), row(printed, "all@0.5")
    assert float(half[3]) != float(whole[3])  # validation loss
    assert float(half[-1]) == pytest.approx(float(half[3]) - float(whole[3]), abs=2e-4)
    assert "not finished" not in printed
    sizes = ("--seeds", "0", "--tokens", 32_768, "--rounds", 1)
    printed = run("variants", tmp_path, "--of", "now,scales,scales@0.5,rows-512", "--texts", "python", *sizes)
    assert (tmp_path / "python" / "scales@0.5-0").is_dir() and row(printed, "scales")
    loss, less = row(printed[printed.index("whole documents") :], "rows-512")
    assert 0 < float(loss) < 10 and float(less) != 0
    speeds = run("variants", tmp_path, "--of", "adamw,all", "--only", "speeds", "--rounds", 1)
    assert row(speeds, "adamw")[0] == "1.000"


def test_every_variant_and_option_is_a_preset(tmp_path: Path):
    (tmp_path / "books" / "data").mkdir(parents=True)
    (tmp_path / "books" / "data" / "train-0.parquet").write_bytes(bytes(1000))
    for name in [*variants.VARIANTS, *variants.OPTIONS, "now+scales+cautious", "scales+final-0"]:
        for text in variants.TEXTS:
            made = variants.preset(variants.Made(name, 1.0, 3, text), tmp_path, (128, 2))
            assert made.train.seed == 3 and not made.train.compile
            names = [source.source_name for source in made.data.sources]
            assert ("python_packages" in names) == (text != "corpus") and ("books" in names) == (text == "corpus")
    both = variants.preset(variants.Made("scales+final-0", 0.5, 0, "python"), None, (128, 2))
    assert both.model.stream_scales and both.model.norm == "rms" and both.train.final_learning_rate_fraction == 0


def test_the_parts_of_a_run_whose_rows_grow():
    made = variants.preset(variants.Made("rows-growing", 1.0, 0, "python"), None, (128, 2))
    parts = variants.with_rows_of_one_length(made)
    assert [share for share, _ in parts] == pytest.approx([0.5, 0.35, 0.15])
    assert [part.model.seq_length for _, part in parts] == [256, 512, 1024]
    assert {variants.tokens_of_step(part) for _, part in parts} == {4096}


def test_what_variants_say_about_equal_time():
    points = [(0.5, 4.2), (1.0, 4.0)]
    assert loss_at(points, 1.0) == 4.0 and loss_at(points, 0.5**0.5) == pytest.approx(4.1)
    assert loss_at(points, 1.01) == 4.0 and loss_at(points, 1.1) is None and loss_at(points, 0.3) is None
    assert time_to(points, 4.1) == ("=", pytest.approx(0.5**0.5))
    assert time_to(points, 4.3) == ("<", 0.5) and time_to(points, 3.9) is None
    assert interval([0.1, 0.2, 0.3]) == "+0.2000 +- 0.2484" and interval([0.1]) == "+0.1000"


@pytest.mark.slow
def test_lookahead_trains_and_prints_its_table(tmp_path: Path):
    sizes = ("--tokens", 32_768, "--held-out", 20_000, "--probe-tokens", 20_000)
    printed = run("lookahead", tmp_path, "--methods", "off,on", "--seeds", "0", *sizes)
    off, on = row(printed, "off-0"), row(printed, "on-0")
    assert off[2:] == on[2:]  # validation loss: a detached core leaves the trunk alone
    assert "MTP told tokens" in printed and "not finished" not in printed


def test_mistakes_are_answered_without_tracebacks_and_places():
    said = (REPOSITORY / "benchmarks" / "results" / "mistakes.txt").read_text(encoding="utf-8")
    each = said.split("\n## ")[1:]
    assert len(each) >= 12
    for one in each:
        assert re.search(r"^(\[exit status \d+.*\]|left out: .*)$", one, flags=re.MULTILINE), one
    assert not re.search(r"Traceback|/tmp|/root|/home", said)


@pytest.mark.slow
def test_mistakes_are_made_against_the_real_program():
    printed = run("mistakes", "--only", "typo in a key,python main.py 02,empty folder")
    assert 'train.learing_rate: unknown key (did you mean "learning_rate"?).' in printed
    assert printed.count("[exit status 2]") == 2 and printed.count("[exit status 3]") == 1


@pytest.mark.slow
def test_experts_trains_and_compares_at_equal_flops_and_time(tmp_path: Path):
    (tmp_path / "speeds.json").write_text('{"dense": 1.0, "experts": 2.0, "large": 4.0}')  # a test takes no timings
    sizes = ("--seeds", "0", "--tokens", 32_768, "--shape", "128x2")
    printed = run("experts", tmp_path, *sizes)
    assert "not finished" not in printed and "experts@time is experts@0.5" in printed
    figures = printed.rpartition("validation loss")[2]  # the models' sizes stand above
    for label in ("dense", "experts", "large", "experts@0.5", "large@0.25"):
        assert float(row(figures, label)[3]) > 1  # validation loss
    loads = [line for line in printed.splitlines() if "100% of the run" in line]
    assert len(loads) == 1 and all(float(figure) >= 0 for figure in loads[0].split()[-2:])
    active = [int(row(printed, name)[2].replace(",", "")) for name in ("dense", "experts")]
    assert active[1] == pytest.approx(active[0], rel=0.05)
    total = [int(row(printed, name)[1].replace(",", "")) for name in ("large", "experts")]
    assert total[1] == pytest.approx(total[0], rel=0.2)


@pytest.mark.slow
def test_memory_trains_and_prints_what_is_won_back(tmp_path: Path):
    relative = '{"without": 1.0, "memory": 2.0, "memory+recon": 2.0, "raw": 1.0, "full": 1.0}'
    (tmp_path / "speeds.json").write_text(relative)  # a test takes no timings
    printed = run("memory", tmp_path, "--tokens", 32_768, "--shape", "64x1", "--window", 32, "--held-out", 40_000)
    table = printed.split("python_packages, ")[1]
    recovered = {line.split()[0]: float(line.split()[-3]) for line in table.splitlines()[2:10]}
    assert recovered["without"] == 0 and recovered["full"] == 1
    assert {"cut", "shuffled", "memory", "memory+recon", "raw", "memory@time"} < recovered.keys()
    assert "short: " in printed and "beyond: " in printed and "R by seed" in printed
