"""The memory that a rank needs, from a preset's values alone: which ZeRO stage fits.

Estimates, compared with what is measured in docs/several-machines.md.
"""

from dataclasses import dataclass

from model.config import ModelConfig

ACTIVATION_BYTES = (
    34  # of a layer, per token and hidden_size (Korthikanti et al., arXiv 2205.05198, without the matrix)
)
CHECKPOINTED_BYTES = 4  # the same where only a block's input is kept
BUCKET_BYTES = 200_000_000  # of 50 million numbers, as deepspeed.py asks for; stage 2 has two
SHARE_USED = 0.9  # of the memory: libraries and fragments need the rest
GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """What decides a rank's memory. `rows` are those of a micro-batch."""

    model: ModelConfig
    parameters: int
    rows: int
    world_size: int
    offloaded: bool = False  # train.offload_optimizer
    checkpointed: bool = False  # train.checkpoint_activations

    def state_bytes(self, stage: int) -> float:
        """Return the bytes of weights, gradients and AdamW's moments, all fp32, on a rank's device between two steps.

        At stages 1 and 2 DeepSpeed keeps a flat copy of what a rank steps beside the weights; one process runs them as
        0, unless it offloads.
        """
        if stage == 0 or (stage < 3 and self.world_size == 1 and not self.offloaded):
            return 16.0 * self.parameters
        divided = 16 * self.parameters / self.world_size  # weights or their copy, gradients, both moments
        if stage == 3:
            return divided
        return 4.0 * self.parameters + (0.0 if self.offloaded else divided)

    def step_bytes(self, stage: int) -> float:
        """Return about what a micro-batch adds: activations, buffers in which gradients are reduced, and at stage 1
        those that are not divided yet."""
        width = self.rows * self.model.seq_length * self.model.hidden_size
        layers = self.model.num_layers
        per_layer = CHECKPOINTED_BYTES * layers + ACTIVATION_BYTES if self.checkpointed else ACTIVATION_BYTES * layers
        undivided = 4 * self.parameters if stage == 1 else 0
        return width * per_layer + undivided + BUCKET_BYTES * (0, 1, 2, 1)[stage]

    def bytes_beside(self, stage: int) -> int:
        """Return what training keeps beside whole weights and gradients, which a micro-batch that is tried has."""
        undivided = 4 * self.parameters if stage == 1 else 0
        return max(0, int(self.state_bytes(stage) + undivided - 8 * self.parameters))

    def needed(self, stage: int) -> float:
        return self.state_bytes(stage) + self.step_bytes(stage)

    def stages(self, asked: int | str) -> tuple[int, ...]:
        """Return the stages that `asked`, which is train.zero_stage, leaves open."""
        return (int(asked),) if asked != "auto" else (1, 2) if self.offloaded else (0, 1, 2, 3)

    def lowest_stage(self, asked: int | str, memory: float) -> int:
        """Return the lowest stage that fits into `memory` bytes, or the last where none does."""
        stages = self.stages(asked)
        return next((stage for stage in stages if self.needed(stage) <= SHARE_USED * memory), stages[-1])
