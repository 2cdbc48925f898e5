"""model/latent/trunk.py: the last block as the core reads it is the trunk's own."""

import pytest
import torch

from model.attention import attention_mask
from model.latent.trunk import LastBlock


@pytest.mark.parametrize("segments", [None, [0] * 4 + [1] * 6])
def test_the_last_block_makes_the_trunks_own_states(any_trunk, segments):
    """Each position by itself, with the keys and values of those before it: first of the text, then of steps."""
    ids = torch.randint(50, (2, 10))
    segments = None if segments is None else torch.tensor([segments] * 2)
    states = any_trunk.states(ids, segment_ids=segments)
    allowed = attention_mask(any_trunk.causal_mask[:10, :10], segments)
    last_block = LastBlock(any_trunk)
    keys, values = last_block.keys_and_values(states.before_last)
    for read in (1, 5, 7):
        steps = []
        for at in range(read, 10):
            if segments is not None and segments[0, at] != segments[0, read]:
                break
            text = keys[:, :, :read], values[:, :, :read]
            rotations = None if any_trunk.rotary is None else any_trunk.rotary(1, at)
            made = last_block(
                states.before_last[:, at : at + 1], rotations, text, allowed[..., at : at + 1, :read], steps
            )
            torch.testing.assert_close(made[:, 0], states.final[:, at], atol=1e-4, rtol=1e-3)
