"""Several machines: starts without a shared folder, links that fail, machines that are lost; a machine is a network
namespace (tests/helpers/hosts.py)."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.events import read
from tests.helpers.folders import equal, events_of, progress, weights
from tests.helpers.hosts import (
    GRACE,
    IMPATIENCE,
    IMPATIENT,
    MAIN,
    MAIN_PROGRAM,
    Host,
    Network,
    deepspeed,
    deepspeed_by_pdsh,
    group,
    impatient,
    problem,
    torchrun,
)
from tests.helpers.jobs import STAMP, STEP_LINE, Job
from tests.helpers.processes import NONE
from tests.helpers.text import REPOSITORY
from tests.helpers.training import by_step, tiny_values

pytestmark = pytest.mark.skipif(problem() is not None, reason=f"hosts of network namespaces: {problem()}")

SECONDS_TO_SAVE = 20.0
SECONDS_TO_MISS_A_HOST = IMPATIENCE + GRACE + 8.0
WORKER = str(REPOSITORY / "tests/helpers/workers/worlds.py")
IMPATIENT_PROGRAM = IMPATIENT + MAIN_PROGRAM


@pytest.fixture
def hosts(tmp_path: Path, topics_folder: Path) -> Iterator[Callable[..., Network]]:
    """Makes a network; the first host alone has the presets. A test that hangs is ended."""
    networks: list[Network] = []

    def make(number: int = 2, sections: dict | None = None, **options) -> Network:
        network = Network(tmp_path, number, **options)
        networks.append(network.__enter__())
        (network.hosts[0].folder / "configs").mkdir()
        train = {"eval_interval_tokens": 10**7, "log_interval_seconds": 0.05}
        values = tiny_values(topics_folder, **{"train": train, **(sections or {})})
        (network.hosts[0].folder / "configs" / "00_tiny.json").write_text(json.dumps(values))
        return network

    timer = threading.Timer(600.0, lambda: [host.signal(signal.SIGKILL) for one in networks for host in one.hosts])
    timer.start()
    yield make
    timer.cancel()
    for network in networks:
        network.__exit__()


def forked(network: Network, program: str = MAIN_PROGRAM, ranks: int = 1) -> list[Job]:
    """One job a rank, without a launcher."""
    jobs = [Job(host.folder, host.fork(program, **variables)) for host, variables in group(network, ranks)]
    return answered(jobs)


def launched(network: Network, launcher: Callable[..., list[str]], *, variables: dict = NONE, **options) -> list[Job]:
    """One job a host; `options` are the launcher's."""
    commands = [launcher(network, number, **options) for number in range(len(network.hosts))]
    started = zip(network.hosts, commands, strict=True)
    return answered([Job(host.folder, host.start(*command, **variables)) for host, command in started])


def answered(jobs: list[Job]) -> list[Job]:
    for job in jobs:
        job.answer()
    return jobs


def all_end_within(seconds: float, *hosts: Host) -> None:
    since = time.monotonic()
    while left := [process for host in hosts for process in host.processes()]:
        assert time.monotonic() - since < seconds, [process.cmdline() for process in left]
        time.sleep(0.1)


def steps(job: Job) -> int:
    return len(events_of(job.home / "checkpoints", "step"))


# Starts


def test_hosts_without_a_shared_folder_train_one_model(hosts):
    """Then the machine that was not rank 0's does not start another model by itself."""
    network = hosts()
    alpha, beta = network.hosts
    jobs = forked(network)
    jobs[0].until(STEP_LINE, times=3)
    jobs[1].process.send_signal(signal.SIGTERM)
    rest = jobs[0].rest()
    assert [job.process.wait(SECONDS_TO_SAVE) for job in jobs] == [143, 143], rest
    assert "SIGTERM at step" in rest and not jobs[1].rest().count("step"), rest
    assert progress(alpha.folder / "checkpoints")["step"] > 0
    assert os.listdir(beta.folder / "checkpoints") == ["elsewhere.json"]
    assert not list((alpha.folder / "checkpoints").glob(".rank0-*"))

    (beta.folder / "configs").symlink_to(alpha.folder / "configs")
    (job,) = answered([Job(beta.folder, beta.fork())])
    said = job.rest()
    assert job.process.wait() == 4
    assert "The checkpoints of the last run in checkpoints are on alpha." in said, said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
@pytest.mark.parametrize("shared", [False, True], ids=["own folders", "a shared folder"])
def test_both_launchers_start_two_hosts(hosts, launcher, shared: bool):
    network = hosts(shared=shared)
    jobs = launched(network, launcher)
    jobs[0].until(STEP_LINE, times=3)
    assert "4 processes" in jobs[0].output
    network.hosts[1].processes()[0].send_signal(signal.SIGTERM)  # the launcher there
    rest = jobs[0].rest()
    all_end_within(2 * SECONDS_TO_SAVE, *network.hosts)
    assert rest.count("SIGTERM at step") == 1 and "engine/" not in rest, rest
    checkpoints = [host.folder / "checkpoints" for host in network.hosts]
    assert progress(checkpoints[0])["step"] >= 3
    assert (checkpoints[1] / "elsewhere.json").exists() != shared
    assert jobs[1].rest().count("Preset 00_tiny") == 0, "only rank 0 asks"


@pytest.mark.slow
def test_one_command_of_deepspeed_starts_all_hosts(hosts):
    """With a hostfile and pdsh."""
    network = hosts()
    alpha, beta = network.hosts
    command, variables = deepspeed_by_pdsh(network)
    (job,) = answered([Job(alpha.folder, alpha.start(*command, **variables))])
    job.until(STEP_LINE, times=3)
    assert "4 processes" in job.output
    next(p for p in beta.processes() if p.environ().get("RANK") == "2").send_signal(signal.SIGTERM)
    rest = job.rest()
    all_end_within(2 * SECONDS_TO_SAVE, alpha, beta)
    assert "SIGTERM at step" in rest, rest
    assert progress(alpha.folder / "checkpoints")["step"] > 0
    assert (beta.folder / "checkpoints" / "elsewhere.json").exists()


@pytest.mark.slow
def test_text_that_one_host_lacks_is_named_with_the_host(hosts, topics_folder: Path):
    source = {"type": "files", "path": "notes", "glob": "*.txt", "name": "notes"}
    network = hosts(sections={"data": {"tokenizer": {"train_bpe": 512}, "sources": [source]}})
    alpha, beta = network.hosts
    (alpha.folder / "notes").mkdir()
    for path in topics_folder.glob("*.txt"):
        (alpha.folder / "notes" / path.name).write_bytes(path.read_bytes())
    jobs = forked(network)
    said = jobs[0].rest()
    assert [job.process.wait() for job in jobs] == [3, 3]
    assert re.search(r"Rank 1 on beta cannot read what rank 0 on alpha can: notes \(.*\)\. Copy it there", said), said

    (beta.folder / "notes").mkdir()
    for path in list((alpha.folder / "notes").iterdir())[1:]:
        (beta.folder / "notes" / path.name).write_bytes(path.read_bytes())
    jobs = forked(network)
    said = jobs[0].rest()
    assert [job.process.wait() for job in jobs] == [3, 3]
    assert "notes (it holds other files there)" in said, said


# Links


@pytest.mark.slow
def test_a_slow_link_that_loses_packets_is_no_reason_to_end(hosts):
    network = hosts(delay=0.02, loss=0.01)
    jobs = forked(network)
    jobs[0].until(STEP_LINE, times=5)
    jobs[0].process.send_signal(signal.SIGTERM)
    jobs[0].rest()
    assert [job.process.wait(2 * SECONDS_TO_SAVE) for job in jobs] == [143, 143], jobs[0].output


@pytest.mark.slow
def test_a_link_that_is_down_for_five_seconds_costs_no_more(hosts):
    network = hosts()
    jobs = forked(network)  # as patient as always
    jobs[0].until(STEP_LINE, times=3)
    network.hosts[1].cut()
    time.sleep(5.0)
    before = steps(jobs[0])
    network.hosts[1].mend()
    since = time.monotonic()
    while steps(jobs[0]) <= before + 3:
        assert time.monotonic() - since < 30
        time.sleep(0.1)
    jobs[0].process.send_signal(signal.SIGTERM)
    jobs[0].rest()
    assert [job.process.wait(SECONDS_TO_SAVE) for job in jobs] == [143, 143], jobs[0].output


@pytest.mark.slow
def test_a_link_that_is_down_for_ever_ends_both_sides(hosts):
    network = hosts()
    jobs = forked(network, IMPATIENT_PROGRAM, ranks=2)
    jobs[0].until(STEP_LINE, times=3)
    network.hosts[1].cut()
    all_end_within(SECONDS_TO_MISS_A_HOST, *network.hosts)
    said = [job.rest() for job in jobs]
    assert [job.process.wait() for job in jobs] == [7] * 4
    assert re.search(r"Rank [23] on beta was lost \(no heartbeat for \d s\) at step", said[0]), said
    assert "Rank 0 on alpha was lost (no heartbeat for " in said[2] and "stopped" not in said[3], said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
@pytest.mark.parametrize("lost", [0, 1], ids=["the first host", "the second host"])
def test_a_host_that_is_switched_off_ends_the_other(hosts, launcher, lost: int):
    network = hosts()
    jobs = launched(network, launcher, program=impatient(network, MAIN))
    jobs[0].until(STEP_LINE, times=3)
    network.hosts[lost].switch_off()
    rest = network.hosts[1 - lost]
    all_end_within(SECONDS_TO_MISS_A_HOST + 35.0, rest)  # the launcher gives its other rank 30 s
    said = jobs[1 - lost].rest()
    gone = "Rank 0 on alpha" if lost == 0 else "Rank [23] on beta"
    assert re.search(rf"{gone} was lost \(no heartbeat for \d s\) at step", said), said


@pytest.mark.slow
def test_a_host_whose_processes_are_killed_ends_the_other_at_once(hosts):
    network = hosts()
    jobs = forked(network, ranks=2)
    jobs[0].until(STEP_LINE, times=3)
    network.hosts[1].signal(signal.SIGKILL)
    all_end_within(SECONDS_TO_SAVE, *network.hosts)
    assert [job.process.wait() for job in jobs[:2]] == [7, 7]
    assert re.search(r"Rank [23] on beta was lost \(its connection closed\) at step", jobs[0].rest())


# Machines that are slow, or stand still


@pytest.mark.slow
def test_a_slow_host_is_named(hosts):
    network = hosts()
    slow = """
import time
from model.transformer import TransformerLM
forward = TransformerLM.forward
def slowly(*arguments, **named):
    time.sleep(0.3)
    return forward(*arguments, **named)
TransformerLM.forward = slowly
"""
    jobs = answered(
        [
            Job(host.folder, host.fork(program, **variables))
            for (host, variables), program in zip(group(network), (MAIN_PROGRAM, slow + MAIN_PROGRAM), strict=True)
        ]
    )
    jobs[0].until(STAMP + r"step .*rank 1 on beta is slow: \d+\.\d times the median$")
    jobs[0].process.send_signal(signal.SIGTERM)
    jobs[0].rest()
    (*_, event) = [e for e in events_of(network.hosts[0].folder / "checkpoints", "step") if e["slow_rank"]]
    assert event["slow_rank"]["rank"] == 1 and event["slow_rank"]["host"] == "beta"
    assert event["slow_rank"]["times_median"] > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True], ids=["for a while", "for too long"])
def test_a_host_that_stands_still_and_comes_back(hosts, long: bool):
    network = hosts()
    jobs = forked(network, IMPATIENT_PROGRAM)
    jobs[0].until(STEP_LINE, times=3)
    network.hosts[1].signal(signal.SIGSTOP)
    if not long:
        time.sleep(IMPATIENCE / 3)
        network.hosts[1].signal(signal.SIGCONT)
        jobs[0].until(STEP_LINE, times=5)
        jobs[0].process.send_signal(signal.SIGTERM)
        jobs[0].rest()
        assert [job.process.wait(SECONDS_TO_SAVE) for job in jobs] == [143, 143], jobs[0].output
        return
    all_end_within(SECONDS_TO_MISS_A_HOST, network.hosts[0])
    assert "Rank 1 on beta was lost (no heartbeat for " in jobs[0].rest()
    network.hosts[1].signal(signal.SIGCONT)  # it does not go on alone
    all_end_within(SECONDS_TO_MISS_A_HOST, network.hosts[1])
    assert [job.process.wait() for job in jobs] == [7, 7]


@pytest.mark.slow
def test_clocks_that_differ_by_an_hour_are_no_reason_to_end(hosts):
    network = hosts(sections={"data": {"cache": True}}, shared=True)
    ahead = "import time\nreal = time.time\ntime.time = lambda: real() + 3600.0\n" + MAIN_PROGRAM
    for programs in ((MAIN_PROGRAM, ahead), (ahead, MAIN_PROGRAM)):  # the second start is an hour before the first
        jobs = answered(
            [
                Job(host.folder, host.fork(program, **variables))
                for (host, variables), program in zip(group(network), programs, strict=True)
            ]
        )
        jobs[0].until(STEP_LINE, times=5)
        jobs[0].process.send_signal(signal.SIGTERM)
        jobs[0].rest()
        assert [job.process.wait(SECONDS_TO_SAVE) for job in jobs] == [143, 143], jobs[0].output
    assert "resumed" in jobs[0].output


# Going on by themselves


def worker(network: Network, folder: str, budget: int, topics_folder: Path) -> tuple[str, ...]:
    train = {"eval_interval_tokens": 10**7, "log_interval_seconds": 1e-9, "save_interval_minutes": 0.5 / 60}
    preset = json.dumps(tiny_values(topics_folder, train=train))
    return impatient(network, WORKER, preset, folder, str(budget), "0")


def rows_of(folder: Path) -> dict[int, str]:
    """Every row that was trained on, by its number in the lineage; trained on twice, it must be the same."""
    found: dict[int, str] = {}
    for path in folder.glob("rows-*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            numbers = range(line["row"] - len(line["rows"]) * line["world"], line["row"])
            own = [number for number in numbers if number % line["lanes"] % line["world"] == line["rank"]]
            for number, row in zip(own, line["rows"], strict=True):
                assert found.setdefault(number, row) == row, number
    return found


def rows_on_all(network: Network, folder: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for host in network.hosts:
        for number, row in rows_of(host.folder / folder).items():
            assert found.setdefault(number, row) == row, number
    return found


STEPS = 150


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_nothing_differs(hosts, topics_folder: Path):
    """torchrun --max-restarts, the same world: to the bit."""
    network = hosts()
    for host in network.hosts:
        for name in ("whole", "parts"):
            (host.folder / name).mkdir()
    budget = STEPS * 4 * 2 * 8 * 32
    for name in ("whole", "parts"):
        program = worker(network, name, budget, topics_folder)
        options = {"launcher": lambda *a, **k: torchrun(*a, "--max_restarts=2", **k), "program": program}
        jobs = launched(network, **options)
        if name == "parts":
            jobs[0].until(STAMP + r"saved .* at [1-9]")
            next(p for p in network.hosts[1].processes() if p.environ().get("RANK") == "3").kill()
        said = jobs[0].rest()
        all_end_within(SECONDS_TO_SAVE, *network.hosts)
        assert [job.process.wait() for job in jobs] == [0, 0], (said, jobs[1].rest())
    whole, parts = (network.hosts[0].folder / name for name in ("whole", "parts"))
    assert len(events_of(parts, "resume")) == 1 and not events_of(whole, "resume")
    assert equal(weights(whole), weights(parts))
    assert by_step(read(whole)) == by_step(read(parts)) and len(by_step(read(whole))) >= STEPS
    assert rows_on_all(network, "whole") == rows_on_all(network, "parts")


@pytest.mark.slow
def test_a_lost_host_and_a_new_one_change_no_row(hosts, topics_folder: Path):
    """torchrun --nnodes=1:2: the first host goes on alone from the last snapshot, then the second joins again. Agents
    that keep their store let no machine in later."""
    network = hosts()
    alpha, beta = network.hosts
    for host in network.hosts:
        (host.folder / "run").mkdir()
    budget = 2 * STEPS * 4 * 2 * 8 * 32
    options = ("--max_restarts=3", "--rdzv_conf=last_call_timeout=2")
    program = worker(network, "run", budget, topics_folder)
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    jobs = launched(network, lambda *a: torchrun(*a, *options, nnodes="1:2", program=program), variables=own_store)
    jobs[0].until(STAMP + r"saved .* at [1-9]")
    beta.switch_off()
    jobs[0].until(STAMP + r"Run 1 of tiny.* 2 processes")
    jobs[0].until(STAMP + r"saved .* at [1-9]")
    beta.mend()
    command = torchrun(network, 1, *options, nnodes="1:2", program=program)
    (again,) = answered([Job(beta.folder, beta.start(*command, **own_store))])
    jobs[0].until(STAMP + r"Run 1 of tiny.* 4 processes")
    said = jobs[0].rest()
    assert jobs[0].process.wait() == 0, said
    all_end_within(SECONDS_TO_SAVE, alpha, beta)
    again.rest()
    worlds = [event["derived"]["world_size"] for event in events_of(alpha.folder / "run", "run")]
    assert worlds == [4, 2, 4]
    found = rows_on_all(network, "run")
    assert sorted(found) == list(range(len(found))) and progress(alpha.folder / "run")["finished"]
