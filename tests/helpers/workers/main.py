"""main.py as a test can meet it at some moment: it stays in the stage HELD_STAGE, and a run has RUN_TOKENS."""

import contextlib
import os
import runpy
import sys
import time
from collections.abc import Iterator

import engine.config
from engine.events import EventLog
from tests.helpers.text import REPOSITORY

stage = EventLog.stage


@contextlib.contextmanager
def held_stage(log: EventLog, name: str) -> Iterator[None]:
    with stage(log, name):
        if name == os.environ.get("HELD_STAGE"):
            time.sleep(600)
        yield


EventLog.stage = held_stage
if tokens := os.environ.get("RUN_TOKENS"):
    engine.TOKENS_PER_RUN = engine.config.TOKENS_PER_RUN = int(tokens)
main = REPOSITORY / "main.py"
sys.argv = [str(main), *sys.argv[1:]]
runpy.run_path(str(main), run_name="__main__")
