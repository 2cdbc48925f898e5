"""Virtual lanes: the unit of sharding and of resuming.

A run has V lanes, fixed when its lineage begins. A lane has one stream per source (stream.py) and one mixer that picks
whose row is next by tokens owed. Row i of a run comes from lane i % V, and lane v belongs to rank v % W: which rows
there are, in which order, and in which step, does not depend on the ranks and workers that happen to serve them.
"""

import math
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass

from sources.loading.mixing import Mixer, SequentialMixer
from sources.loading.prefetch import Workers
from sources.rows.blocks import Made
from sources.rows.packing import Block
from sources.source import JSON, SourceError

MIN_LANES = 16


class SourceLost(Exception):
    """A source cannot be read any more; every rank must go on without it from the same step on."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


@dataclass
class Run:
    """Rows of one block from `first` on; `turns` are their places among the rows that the lane was asked for."""

    source: str
    block: Block
    first: int
    turns: list[int]


class Queue:
    """One stream's blocks as they are used up: the state before the block in use, and how many of its rows are gone."""

    def __init__(self, name: str, lane: int, workers: Workers, kept: JSON | None):
        self.name, self.lane, self.workers = name, lane, workers
        self._before: JSON = kept["state"] if kept else None
        self._taken = kept["taken"] if kept else 0
        self.tokens = kept["tokens"] if kept else 0  # labels delivered since the lineage began
        self._block: Block | None = None
        self._lengths: list[int] = []
        self._after: JSON = None
        self.dry = False
        self.counts: dict[str, int] = {}
        self._asked: deque[Future[Made]] = deque()
        self._ask(self._before)

    @property
    def number(self) -> int:
        """The pass of the next row; `fetch` must have been called."""
        return self._before["pass"] if self._before else 0

    def fetch(self) -> bool:
        """Have a row ready; False when there will be none. Raises SourceLost, on every call once it failed."""
        while self._taken >= len(self._lengths):
            if self.dry:
                return False
            if self._block is not None:
                self._before, self._taken = self._after, 0
                self._block, self._lengths = None, []
            try:
                made = self._asked[0].result()
            except SourceError as error:
                raise SourceLost(self.name, error.reason) from error
            self._asked.popleft()
            self._block, self._after = made.block, made.after
            self._lengths = made.block.lengths.tolist()
            for reason, number in made.counts.items():
                self.counts[reason] = self.counts.get(reason, 0) + number
            if len(made.block):
                self._ask(made.after)
            else:
                self.dry = True
        return True

    @property
    def left(self) -> int:
        """Rows of the block in use that are not taken; `fetch` must have been called."""
        return len(self._block) - self._taken

    def take(self, rows: int) -> tuple[Block, int, int]:
        """Take the next `rows` rows, at most `left`: their block, the first one's index there, their labels."""
        first, self._taken = self._taken, self._taken + rows
        tokens = sum(self._lengths[first : self._taken])
        self.tokens += tokens
        return self._block, first, tokens

    def state(self) -> JSON:
        """What `kept` takes; the same value as long as no row was taken."""
        return {"state": self._before, "taken": self._taken, "tokens": self.tokens}

    def _ask(self, before: JSON) -> None:
        self._asked.append(self.workers.submit(self.name, self.lane, before))


class Lane:
    """One lane's queues and mixer; entries of sources that are absent this time pass through its state untouched."""

    def __init__(
        self,
        number: int,
        names: list[str],
        weights: dict[str, float] | None,
        seq_length: int,
        workers: Workers,
        state: JSON | None = None,
    ):
        """`weights` of None asks for sequential mixing."""
        kept = state["streams"] if state else {}
        self._absent = {name: stream for name, stream in kept.items() if name not in names}
        self.queues = {name: Queue(name, number, workers, kept.get(name)) for name in names}
        self.mixer: Mixer | SequentialMixer
        if weights is None:
            self.mixer = SequentialMixer(names, lambda name: self.queues[name].number)
        else:
            self.mixer = Mixer({name: weights[name] for name in names}, seq_length, phase=0 if state else number)
        turn = state["mixer"].get("current") if state else None
        if state is not None and (turn is None or turn in kept):  # a source that begins anew has no turn to finish
            self.mixer.load(state["mixer"])

    def take(self, rows: int) -> list[Run]:
        """Take the next `rows` rows; fewer only when there is nothing to read any more. Raises SourceLost."""
        runs: dict[int, Run] = {}
        turn = 0
        while turn < rows:
            # All are made ready first: what shares the rows must not depend on which were asked before a restart.
            live = [name for name, queue in self.queues.items() if queue.fetch()]
            if not live:
                break
            name = self.mixer.pick(live)
            queue = self.queues[name]
            together = min(rows - turn, queue.left) if len(live) == 1 and isinstance(self.mixer, Mixer) else 1
            block, first, tokens = queue.take(together)
            self.mixer.charge(name, live, tokens)
            run = runs.setdefault(id(block), Run(name, block, first, []))
            run.turns.extend(range(turn, turn + together))
            turn += together
        return list(runs.values())

    def state(self) -> JSON:
        """What resumes right after the last row."""
        streams = {name: queue.state() for name, queue in self.queues.items()}
        return {"streams": self._absent | streams, "mixer": self.mixer.state()}


def choose_num_lanes(world_size: int, num_workers: int = 0) -> int:
    """Return the number of lanes of a new lineage: at least one for each worker of each rank.

    They can be dealt evenly to this number of ranks and, in case it changes, to 2, 4, 8 and 16.
    """
    lanes = math.lcm(MIN_LANES, world_size)
    while lanes < world_size * num_workers:
        lanes *= 2
    return lanes


def lanes_of_step(first: int, rows: int, rank: int, world_size: int, num_lanes: int) -> list[int]:
    """Return the lanes of those of the `rows` rows from row `first` on that are `rank`'s, in order."""
    lanes = (row % num_lanes for row in range(first, first + rows))
    return [lane for lane in lanes if lane % world_size == rank]


def rows_per_pass(micro_batch_size: int, accumulation_steps: int, world_size: int, num_lanes: int) -> int:
    """Return the rows that one pass needs on every rank, so that any step fits, whichever lane it begins with.

    That is `micro_batch_size`, and more (at most twice as much) where the lanes cannot be dealt evenly: some ranks then
    own more than their share of a step's rows, and the others are given padding.
    """
    if num_lanes % world_size == 0:
        return micro_batch_size
    owners = [lane % world_size for lane in range(num_lanes)]
    cycles, rest = divmod(micro_batch_size * accumulation_steps * world_size, num_lanes)
    in_cycle = Counter(owners)
    windows = (Counter((owners + owners)[first : first + rest]) for first in range(num_lanes))
    most = max(cycles * in_cycle[rank] + window[rank] for window in windows for rank in range(world_size))
    return math.ceil(most / accumulation_steps)
