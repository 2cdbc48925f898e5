"""engine/memory.py: the garbage collector works between steps, never within one, and is as before after a run."""

import gc
import weakref
from pathlib import Path

import pytest

from engine import loop, train
from engine.memory import collected_between_steps
from tests.engine.test_loop import STEP


class Ring:
    """What only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_stays_until_it_is_asked_for(enabled: bool):
    gc.enable() if enabled else gc.disable()
    try:
        with collected_between_steps():
            ring = weakref.ref(Ring())
            [[] for _ in range(100_000)]  # many times what makes Python collect
            assert ring() is not None
            gc.collect()
            assert ring() is None
        assert gc.isenabled() == enabled and gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_no_collection_falls_into_a_step_and_each_report_makes_one(tiny, tmp_path: Path, monkeypatch):
    in_step, collections = [False], {True: 0, False: 0}

    def counted(phase: str, info: dict) -> None:
        if phase == "start":
            collections[in_step[0]] += 1

    original = loop.train_step

    def watched(*arguments, **options):
        in_step[0] = True
        result = original(*arguments, **options)
        in_step[0] = False
        return result

    monkeypatch.setattr(loop, "train_step", watched)
    gc.callbacks.append(counted)
    try:
        train(tiny(), token_budget=8 * STEP, checkpoint_dir=tmp_path)
    finally:
        gc.callbacks.remove(counted)
    assert collections[True] == 0 and collections[False] >= 8  # tiny reports every step
