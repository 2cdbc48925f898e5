"""How a step's rows are dealt to ranks: row i of a run comes from lane i % V, and lane v belongs to rank v % W.

V, the number of virtual lanes, is fixed when a lineage begins. So which rows there are, in which order and in which
step, does not depend on the ranks and workers that serve them.
"""

import math
from collections import Counter
from dataclasses import dataclass

MIN_LANES = 16


@dataclass(frozen=True)
class BatchShape:
    """The rows of an optimizer step, and this rank's place among those that share them."""

    micro_batch_size: int  # rows of one forward and backward on one rank
    grad_accumulation_steps: int
    seq_length: int  # labels of a window
    rank: int = 0
    world_size: int = 1
    windows: int = 1  # of a row

    @property
    def row_length(self) -> int:
        """Labels of a row."""
        return self.windows * self.seq_length

    @property
    def rows_per_step(self) -> int:
        """Over all ranks."""
        return self.micro_batch_size * self.grad_accumulation_steps * self.world_size


def choose_num_lanes(world_size: int, num_workers: int = 0) -> int:
    """Return the number of lanes of a new lineage: at least one for each worker of each rank.

    They can be dealt evenly to this number of ranks and, in case it changes, to 2, 4, 8 and 16.
    """
    lanes = math.lcm(MIN_LANES, world_size)
    while lanes < world_size * num_workers:
        lanes *= 2
    return lanes


def lanes_of_step(first: int, shape: BatchShape, num_lanes: int) -> list[int]:
    """Return the lanes of this rank's rows in the step that begins with row `first` of the run, in order."""
    lanes = (row % num_lanes for row in range(first, first + shape.rows_per_step))
    return [lane for lane in lanes if lane % shape.world_size == shape.rank]


def padded_micro_batch_size(shape: BatchShape, num_lanes: int) -> int:
    """Return the rows that a micro-batch needs on every rank, padding included, so that any step fits.

    That is `micro_batch_size`, and more (at most twice as much) where the lanes cannot be dealt evenly: some ranks then
    own more than their share of a step's rows, whichever lane it begins with, and the others get padding.
    """
    world_size = shape.world_size
    if num_lanes % world_size == 0:
        return shape.micro_batch_size
    owners = [lane % world_size for lane in range(num_lanes)]
    cycles, rest = divmod(shape.rows_per_step, num_lanes)
    in_cycle = Counter(owners)
    windows = (Counter((owners + owners)[first : first + rest]) for first in range(num_lanes))
    most = max(cycles * in_cycle[rank] + window[rank] for window in windows for rank in range(world_size))
    return math.ceil(most / shape.grad_accumulation_steps)
