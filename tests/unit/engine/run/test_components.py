"""What a run saves of its components, and how it ends where it diverges."""

from typing import Any

import pytest
import torch

from engine.config import parse_preset
from engine.errors import Diverged


def test_a_copy_of_the_run_is_what_a_checkpoint_holds(tiny, build):
    components = build(tiny())
    snapshot, optimizer, state = components.capture()
    config = {**components.engine.module.config.model_dump(), "vocab_size": 512}
    assert snapshot.config == config | {"eos_token_id": components.tokenizer.eos_id}
    assert snapshot.tokenizer == components.tokenizer.to_json() and snapshot.progress["step"] == 0
    assert parse_preset(snapshot.preset) == tiny() and optimizer["step"] == 0
    assert state == components.run_state()
    components.engine.module.tokens.weight.data[0, 0] = torch.nan
    assert torch.isfinite(snapshot.model["tokens.weight"]).all(), "a copy"
    with pytest.raises(Diverged, match="The weights are not finite, after step 0"):
        components.capture()


@pytest.mark.parametrize(
    ("on_divergence", "advice"),
    [("stop", 'or set train.on_divergence to "rollback".'), ("rollback", "lower train.learning_rate in preset tiny.")],
)
def test_divergence_says_what_to_change(tiny, build, on_divergence: str, advice: str):
    components = build(tiny(train={"on_divergence": on_divergence}))
    components.progress.step, components.progress.skipped = 12, 3
    with pytest.raises(
        Diverged, match=r"The loss is bad, after step 12\. The snapshots are untouched; lower"
    ) as caught:
        components.diverge("The loss is bad")
    assert str(caught.value).endswith(advice)
    error: Any = caught.value
    assert (error.step, error.skipped, error.saved) == (12, 3, False)
    assert error.state == {**components.run_state(), "guard": None}
