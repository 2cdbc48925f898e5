"""Shim."""

from typing import Any

LoaderState = dict[str, Any]


def is_current_format(state):
    return state.get("format") == 3


def without_sources(state, names):
    for lane in state["lanes"].values():
        for name in names:
            lane["streams"].pop(name, None)
    return state
