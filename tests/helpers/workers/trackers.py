"""Two starts of a run, with trackers: the folder and their names are the arguments; prints what they say."""

import sys
from pathlib import Path

from engine.trackers import Trackers
from tests.helpers.tracked import first_start, second_start

folder, *names = sys.argv[1:]
for events in (first_start(), second_start()):
    trackers = Trackers(names, lambda: Path(folder), print, print)
    for event in events:
        trackers.take(event)
    trackers.close()
