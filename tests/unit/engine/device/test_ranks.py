"""What ranks exchange: in a world of one, and between two real gloo processes."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from engine.device.ranks import Agreement, Ranks, join, local_device
from engine.errors import RunError, SaveError
from tests.helpers.processes import run_ranks, start

ALONE = Ranks(0, 1, torch.device("cpu"), None)

TWO_RANKS = """
import json, os
from dataclasses import asdict
import torch
from engine.device.ranks import Agreement, join, leave
from engine.errors import RunError, SaveError
torch.set_num_threads(1)
ranks = join()

def fail():
    raise SaveError(f"the disk of rank {ranks.rank} is full")

found = {"rank": ranks.rank, "world_size": ranks.world_size, "is_main": ranks.is_main, "device": str(ranks.device)}
found["agreed"] = asdict(ranks.agree(Agreement(labels=100 + ranks.rank, terminate=ranks.rank, save=1 - ranks.rank)))
found["on_main"] = ranks.on_main(lambda: {"by": ranks.rank, "none": None})
try:
    ranks.on_main(fail)
except RunError as error:
    found["error"] = [str(error), error.status]
found["broadcast"] = ranks.broadcast(["said by", ranks.rank])
found["gathered"] = ranks.gather({"rank": ranks.rank})
tensor = torch.tensor([1.5, 10.0]) * (ranks.rank + 1)
found["sum"] = ranks.sum_tensor(tensor.clone()).tolist()
found["tensor"] = ranks.broadcast_tensor(tensor).tolist()
everyone = ranks.gather(found)
if ranks.is_main:
    print(json.dumps(everyone))
leave()
os._exit(0)
"""


def test_alone_every_exchange_gives_ones_own():
    report = Agreement(labels=512, waiting=1, report=1)
    assert ALONE.is_main and ALONE.agree(report) == report
    assert ALONE.on_main(lambda: {"a": 1}) == {"a": 1}
    assert ALONE.broadcast([1, None]) == [1, None] and ALONE.gather("x") == ["x"]
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.sum_tensor(tensor.clone()).equal(tensor) and ALONE.broadcast_tensor(tensor) is tensor


def test_ranks_are_named_with_their_machines_where_there_are_several():
    assert ALONE.place(0) == "0"
    several = Ranks(2, 4, torch.device("cpu"), None, ("alpha", "alpha", "beta", "beta"))
    assert several.place(1) == "1 on alpha" and several.place(2) == "2 on beta"


def test_who_speaks_where_rank_0_is_lost(monkeypatch):
    hosts = ("alpha", "alpha", "beta", "beta")
    for rank, local_rank, deputy in ((0, 0, False), (1, 1, True), (2, 0, True), (3, 1, False)):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert Ranks(rank, 4, torch.device("cpu"), None, hosts).is_deputy == deputy
    assert not Ranks(2, 4, torch.device("cpu"), None).is_deputy, "on one machine it is rank 1"


@pytest.mark.parametrize("error", [SaveError("no room"), RunError("no reason"), KeyError("x")])
def test_alone_an_error_is_raised_as_it_is(error: Exception):
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        ALONE.on_main(fail)
    assert caught.value is error


def test_a_plain_process_joins_a_world_of_one():
    ranks = join()
    assert (ranks.rank, ranks.world_size, ranks.device) == (0, 1, local_device())
    assert dist.is_initialized() and dist.get_backend(ranks.control) == "gloo"
    assert join().agree(Agreement(labels=3)).labels == 3  # as often as one likes


@pytest.mark.parametrize("name", ["interrupt", "terminate", "hang_up"])
def test_any_signal_of_any_rank_is_a_signal(name: str):
    assert Agreement(**{name: 2}).signalled and not Agreement(labels=1, waiting=1, lost=1, save=1).signalled


@pytest.fixture(scope="module")
def found() -> list[dict]:
    """What each of two ranks came to."""
    return json.loads(run_ranks(TWO_RANKS, processes=2, timeout=120).splitlines()[-1])


def test_two_ranks_know_their_places(found):
    assert [(rank["rank"], rank["world_size"], rank["is_main"]) for rank in found] == [(0, 2, True), (1, 2, False)]


def test_reports_are_summed_over_ranks(found):
    agreed = Agreement(labels=201, terminate=1, save=1)
    assert [Agreement(**rank["agreed"]) for rank in found] == [agreed, agreed] and agreed.signalled


def test_rank_0_works_for_all_and_fails_for_all(found):
    for rank in found:
        assert rank["on_main"] == {"by": 0, "none": None}
        assert rank["error"] == ["the disk of rank 0 is full", SaveError.status]


def test_values_and_tensors_go_from_rank_0_or_to_all(found):
    for rank in found:
        assert rank["broadcast"] == ["said by", 0] and rank["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert rank["sum"] == [4.5, 30.0] and rank["tensor"] == [1.5, 10.0]


MEETS = """
import datetime
from engine.device import ranks as module
from engine.errors import RankLost
module.JOIN_TIMEOUT = datetime.timedelta(seconds={seconds})
try:
    joined = module.join()
    print(joined.gather(joined.rank))
    module.leave()
except RankLost as error:
    print(error)
"""


AT_A_TERMINAL = """
import os, pty
os.dup2(pty.openpty()[1], 0)
"""


@pytest.fixture
def printed(tmp_path: Path) -> Callable[..., list[str]]:
    """Starts ranks of a world of two, the second, with `before`, late, and returns what each printed last."""

    def meet(store: dist.TCPStore, ranks: list[int], seconds: float, before: str = "") -> list[str]:
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        variables |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        started = []
        for rank in ranks:
            own = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(start(before + MEETS.format(seconds=seconds), cwd=tmp_path, variables=own))
            if before:
                store.wait([f"join/token/{rank}"])
                time.sleep(2 * seconds)
        return [process.communicate(timeout=60)[0].strip().splitlines()[-1] for process in started]

    return meet


def agents_store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_ranks_meet_in_a_store_that_earlier_ones_have_left(printed):
    """As that of torchrun's agents is, over restarts."""
    store = agents_store()
    assert printed(store, [0, 1], 60.0) == printed(store, [0, 1], 60.0) == ["[0, 1]", "[0, 1]"]
    assert printed(store, [0], 0.6) == [
        f"Not all 2 ranks have met at 127.0.0.1:{store.port}. Start them within 0 minutes, where all their "
        "machines reach this address."
    ]


def test_at_a_terminal_the_others_wait_for_rank_0_which_may_ask(printed):
    assert printed(agents_store(), [1, 0], 1.0, AT_A_TERMINAL) == ["[0, 1]", "[0, 1]"]
