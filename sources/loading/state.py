"""The loader's resume state, as JSON: its types, and the functions that make and change it.

A rank's batch carries the state of that rank's lanes. `merge_states` joins those of all ranks into the lineage's
state, which resumes on any number of ranks.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NotRequired, TypedDict

from sources.rows.handover import handed_over
from sources.rows.pipeline import PipelineState
from sources.rows.pipeline_config import RowFormat

STATE_FORMAT = 4
READABLE_FORMATS = (3, STATE_FORMAT)  # 3: each lane read all of a small source by itself


class StreamState(TypedDict):
    """One source in one lane."""

    state: PipelineState | None  # before the block in use; None: before the first block
    taken: int  # of this lane's rows of that block, those that were delivered
    tokens: int  # labels delivered since the lineage began


Streams = dict[str, StreamState]  # by source


class MixerState(TypedDict, total=False):
    """Whose row is next in a lane: `owed` of the weighted mixer, or the others of the sequential one."""

    owed: dict[str, float]  # labels, by source
    current: str | None  # the source whose turn it is
    until: int  # the turn ends when the source reaches this epoch
    turns: dict[str, int]  # the epoch that a source's next turn is for


class LaneState(TypedDict):
    streams: Streams  # those of sources that are not open this time included
    mixer: MixerState


class LoaderState(TypedDict):
    """Where a lineage's loaders stand, after a batch."""

    format: int  # STATE_FORMAT
    seed: int  # this, `shuffle` and `num_lanes` are fixed when the lineage begins
    shuffle: bool
    num_lanes: int
    rows: RowFormat  # `taken` counts rows of this format
    row: int  # delivered by all ranks, padding not counted
    batch: int  # delivered by each rank
    lanes: dict[str, LaneState]  # by the lane's number: a rank's own, or, once merged, all of them
    tokens_per_source: NotRequired[dict[str, int]]  # labels delivered; in a merged state


def is_readable(state: Mapping[str, object]) -> bool:
    """Whether this version of the program can continue `state`."""
    return state.get("format") in READABLE_FORMATS


def is_newer_format(state: Mapping[str, object]) -> bool:
    """Whether a later version of the program wrote `state`."""
    found = state.get("format")
    return type(found) is int and found > STATE_FORMAT


def new_state(seed: int, shuffle: bool, num_lanes: int, rows: RowFormat) -> LoaderState:
    """Return the state before a lineage's first batch."""
    return LoaderState(
        format=STATE_FORMAT, seed=seed, shuffle=shuffle, num_lanes=num_lanes, rows=rows, row=0, batch=0, lanes={}
    )


def with_rows(
    state: LoaderState, rows: RowFormat, small: Collection[str], start: Callable[[str], PipelineState | None]
) -> LoaderState:
    """Return the state for rows of another format: what the lanes were not given of the blocks in use is packed anew
    (rows/handover.py).

    `start(name)` is the position before the first block, None for a source that is not open: within its first block,
    that begins again. Of the sources `small`, whose chains all lanes share, the state must hold all lanes.
    """
    positions = _positions(state)
    shared = {name for name, found in positions.items() if _is_chain(found) or (name in small and not any(found))}
    ends = {name: _shared_handover(state, name, start(name)) for name in shared}

    def change(streams: Streams) -> Streams:
        changed: Streams = {}
        for name, stream in streams.items():
            if name in ends:
                after = ends[name]
            else:
                before = stream["state"] or (start(name) if stream["taken"] else None)
                after = before and handed_over(before, state["rows"], [[0, stream["taken"]]])
            changed[name] = StreamState(state=after, taken=0, tokens=stream["tokens"])
        return changed

    return {**_with_streams(state, change), "rows": rows}


def _shared_handover(state: LoaderState, name: str, start: PipelineState | None) -> PipelineState | None:
    """Return where all lanes go on in the one chain of a source."""
    lanes = [state["lanes"][str(number)]["streams"].get(name) for number in range(state["num_lanes"])]
    places = [(position["block"] if (position := stream and stream["state"]) else 0) for stream in lanes]
    first = min(places)
    taken = [[place - first, stream["taken"] if stream else 0] for place, stream in zip(places, lanes, strict=True)]
    earliest = lanes[places.index(first)]
    before = (earliest and earliest["state"]) or start
    return before and handed_over(before, state["rows"], taken)


def upgraded(
    state: LoaderState, small: Collection[str], start: Callable[[str, int], PipelineState | None]
) -> tuple[LoaderState, dict[str, int]]:
    """Return the state in today's format, in which all lanes stand in one chain of each of the sources `small`; and the
    epochs with which those continue of which every lane had a chain of its own.

    An epoch of such a chain was all of the source, so as many are over as the lanes have behind them together.
    `start(name, epoch)` is the position at the beginning of an epoch, None for a source that is not open.
    """
    is_older = state["format"] != STATE_FORMAT
    epochs = {
        name: sum(position["pass"] for position in positions if position)
        for name, positions in _positions(state).items()
        if name in small and (is_older or any(positions)) and not _is_chain(positions)
    }
    starts = {name: start(name, epoch) for name, epoch in epochs.items()}

    def change(streams: Streams) -> Streams:
        changed: Streams = {}
        for name, stream in streams.items():
            if name in starts:
                stream = StreamState(state=starts[name], taken=0, tokens=stream["tokens"])
            elif is_older and stream["state"] is None:  # within its first block
                first = start(name, 0)
                if first is None:
                    stream = StreamState(state=None, taken=0, tokens=stream["tokens"])
                else:
                    first.pop("cycle", None)  # as an older version dealt its first epoch
                    stream = StreamState(state=first, taken=stream["taken"], tokens=stream["tokens"])
            changed[name] = stream
        return changed

    return {**_with_streams(state, change), "format": STATE_FORMAT}, epochs


def _positions(state: LoaderState) -> dict[str, list[PipelineState | None]]:
    """Return where each lane stands in each source."""
    found: dict[str, list[PipelineState | None]] = {}
    for lane in state["lanes"].values():
        for name, stream in lane["streams"].items():
            found.setdefault(name, []).append(stream["state"])
    return found


def _is_chain(positions: list[PipelineState | None]) -> bool:
    """Whether these are positions in one chain, which all lanes share."""
    return any(position is not None and "rows" in position for position in positions)


def without_sources(state: LoaderState, names: Collection[str]) -> LoaderState:
    """Return the state without these sources, which then start from their first document."""
    return _with_streams(state, lambda streams: {name: streams[name] for name in streams if name not in names})


def _with_streams(state: LoaderState, change: Callable[[Streams], Streams]) -> LoaderState:
    lanes: dict[str, LaneState] = {
        number: {"streams": change(lane["streams"]), "mixer": lane["mixer"]} for number, lane in state["lanes"].items()
    }
    return {**state, "lanes": lanes}


def merge_states(states: list[LoaderState]) -> LoaderState:
    """Join the states that the ranks' batches of one step carry, and add up the tokens delivered per source.

    Raises ValueError when the states do not belong together.
    """
    lanes = {number: lane for state in states for number, lane in state["lanes"].items()}
    first = states[0]
    if any((state["num_lanes"], state["row"]) != (first["num_lanes"], first["row"]) for state in states):
        raise ValueError("The data states of the ranks come from different steps and cannot be joined.")
    if len(lanes) != first["num_lanes"]:
        raise ValueError(
            f"The data states of the ranks hold {len(lanes)} of {first['num_lanes']} lanes; one rank's is missing."
        )
    tokens: dict[str, int] = {}
    for lane in lanes.values():
        for name, stream in lane["streams"].items():
            tokens[name] = tokens.get(name, 0) + stream["tokens"]
    return {**first, "lanes": lanes, "tokens_per_source": tokens}
