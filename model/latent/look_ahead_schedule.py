"""The draws of a training run for its lookahead core, by how long each part has been trained."""

from torch import Tensor

from ..tensors import LookAhead
from .core import LookaheadCore
from .look_ahead_sampler import LookAheadSampler, Trained


class LookAheadSchedule:
    """Draws a LookAhead for each micro-batch; a part that is switched on later warms up from then on.

    core: the model's; None where it has none, and then nothing is drawn. tokens_per_run: the length of a run, of which
    auxiliary_warmup_fraction is a share. tokens_total: the tokens that the model has been trained on so far. saved: the
    `state` of an earlier schedule: tokens_total when each part was switched on. Parts that are not in it start now;
    without it all parts count as trained. After a rollback to before a part was switched on, it starts at
    `tokens_total`.
    """

    def __init__(
        self,
        core: LookaheadCore | None,
        seq_length: int,
        seed: int,
        tokens_per_run: int,
        tokens_total: int,
        saved: dict[str, int] | None,
    ):
        self._sampler = None if core is None else LookAheadSampler(core.auxiliary, seq_length, seed)
        self._tokens_per_run = tokens_per_run
        known, default = ({}, 0) if saved is None else (saved, tokens_total)
        parts = [] if core is None else [part for part in Trained._fields if getattr(core, part) is not None]
        self._started = {part: min(known.get(part, default), tokens_total) for part in parts}

    def sample(
        self, segment_ids: Tensor, batch_number: int, tokens_total: int, rank: int = 0
    ) -> list[LookAhead] | None:
        """One LookAhead for each of the A micro-batches of a step with segment_ids (A, B, T), when the model has been
        trained on `tokens_total` tokens; None without a core."""
        if self._sampler is None:
            return None
        trained = self.trained(tokens_total)
        return [
            self._sampler.draw(segments, trained, batch_number, rank, micro_batch)
            for micro_batch, segments in enumerate(segment_ids)
        ]

    def trained(self, tokens_total: int) -> Trained:
        """How far the parts are at `tokens_total`; parts that the core does not have count as trained."""
        shares = {part: (tokens_total - start) / self._tokens_per_run for part, start in self._started.items()}
        return Trained.alike(1.0)._replace(**shares)

    def state(self) -> dict[str, int]:
        """What `saved` takes after a restart, as JSON; the same on all ranks."""
        return dict(self._started)
