"""Heartbeats of two real ranks: who is alive, who left, who is lost, and what one rank announces to all."""

import json

import pytest

from engine.control.health import CLOSED
from tests.helpers.processes import run_ranks

LOST, BROKEN = 1.0, 0.4  # seconds

TWO_RANKS = f"""
import json, os, signal, time
from dataclasses import asdict
import torch.distributed as dist
from engine.control import health
from engine.control.health import HealthMonitor, Termination
from engine.device.ranks import join, leave

health.POLL_SECONDS, health.LOST_SECONDS, health.BROKEN_SECONDS = 0.05, {LOST}, {BROKEN}
ranks = join()
other = ranks.gather(os.getpid())[1 - ranks.rank]
found = {{}}

def note(name, termination):
    found[name] = termination and asdict(termination)

def wait(monitor):
    while monitor.termination is None:
        time.sleep(0.01)
    return monitor.termination

def meet():
    dist.barrier(group=ranks.control)

# Both are there; in another run rank 1 leaves.
monitor, left = HealthMonitor(ranks), HealthMonitor(ranks)
if ranks.rank == 1:
    left.leave()
for _ in range(30):  # each counts as POLL_SECONDS
    time.sleep(health.POLL_SECONDS)
    monitor.check_host()
note("alive", monitor.termination)
note("left", left.termination)
note("nobody", monitor.find_lost() if ranks.is_main else None)
meet()

# Rank 1 announces a signal; a later word changes nothing.
monitor = HealthMonitor(ranks)
if ranks.rank == 1:
    monitor.announce(Termination("SIGTERM", 143))
note("announced", wait(monitor))
meet()
if ranks.is_main:
    monitor.announce(Termination("SIGINT", 130))
time.sleep(0.2)
note("later", monitor.termination)
meet()

# Rank 1 stands still, and hears of it when it goes on. Then it does so again in a run whose connection is broken.
for name in ("stopped", "broken"):
    monitor = HealthMonitor(ranks)
    time.sleep(0.2)
    meet()
    if ranks.is_main:
        os.kill(other, signal.SIGSTOP)
        note(name, wait(monitor) if name == "stopped" else monitor.find_lost())
        os.kill(other, signal.SIGCONT)
    else:
        note(name, wait(monitor))
    meet()

# Rank 0, which hosts the store, stands still: rank 1's monitor hangs, and another thread's polls tell.
monitor = HealthMonitor(ranks)
time.sleep(0.2)
meet()
if ranks.rank == 1:
    os.kill(other, signal.SIGSTOP)
    while monitor.termination is None:
        time.sleep(0.02)
        monitor.check_host()
    os.kill(other, signal.SIGCONT)
note("host", monitor.termination)
meet()
everyone = ranks.gather(found)
if ranks.is_main:
    print(json.dumps(everyone))
leave()
os._exit(0)
"""


@pytest.fixture(scope="module")
def found() -> list[dict]:
    """What each rank has learned."""
    return json.loads(run_ranks(TWO_RANKS, processes=2, timeout=120).splitlines()[-1])


def lost(rank: int, why: str) -> dict:
    return {"cause": f"Rank {rank} was lost ({why})", "status": 7, "lost": rank}


def test_ranks_that_beat_or_have_left_are_not_lost(found):
    assert [rank["alive"] for rank in found] == [rank["left"] for rank in found] == [None, None]
    assert found[0]["nobody"] == {"cause": f"Another rank was lost ({CLOSED})", "status": 7, "lost": None}


def test_what_one_rank_announces_all_know_and_keep(found):
    announced = {"cause": "SIGTERM", "status": 143, "lost": None}
    assert [rank["announced"] for rank in found] == [rank["later"] for rank in found] == [announced] * 2


def test_a_rank_that_stands_still_is_lost(found):
    assert [rank["stopped"] for rank in found] == [lost(1, f"no heartbeat for {LOST:.0f} s")] * 2
    assert [rank["broken"] for rank in found] == [lost(1, "its connection closed")] * 2


def test_a_store_that_hangs_is_its_hosts_loss(found):
    assert found[1]["host"] == lost(0, f"no heartbeat for {LOST:.0f} s") and found[0]["host"] is None
