"""A run's page, checkpoints/report.html, made of metrics.jsonl alone.

One file that asks no network for anything: its style, its script and the plotting library stand in it. Building it is a
pure function of a `History`, whose size is bounded, so a page costs the same however long the run is.
"""

from engine.screen.report.history import History, read_history
from engine.screen.report.page import page, page_of_events
from engine.screen.report.updates import listener

__all__ = ["History", "listener", "page", "page_of_events", "read_history"]
