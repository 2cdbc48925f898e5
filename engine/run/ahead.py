"""What each pass draws for the latent core, by how far its parts are: one that is switched on later warms up then."""

from model.config import AuxiliaryConfig
from model.latent import LatentCore, LookAhead, LookAheadSampler, Trained
from sources.loading.loader import Batch


class Ahead:
    """`core` is the model's, None without one, and then nothing is drawn.

    `saved` is the state of an earlier Ahead: how many tokens the lineage had read when each part was switched on. Parts
    that it has not got begin now, at `tokens_total`; where there is no state, all are trained already. After a rollback
    to before a part was switched on it begins where that led.
    """

    def __init__(
        self,
        auxiliary: AuxiliaryConfig,
        core: LatentCore | None,
        seq_length: int,
        seed: int,
        tokens_of_run: int,
        tokens_total: int,
        saved: dict[str, int] | None,
    ):
        self._sampler = None if core is None else LookAheadSampler(auxiliary, seq_length, seed)
        self._tokens_of_run = tokens_of_run
        known, now = (saved, tokens_total) if saved is not None else ({}, 0)
        parts = [] if core is None else [part for part in Trained._fields if getattr(core, part) is not None]
        self._begin = {part: min(known.get(part, now), tokens_total) for part in parts}

    def draw(self, batch: Batch, tokens_total: int, rank: int) -> list[LookAhead] | None:
        """For each pass of `batch`, when the lineage has read so many tokens; None without a core."""
        if self._sampler is None:
            return None
        trained = self.trained(tokens_total)
        return [
            self._sampler.draw(segment_ids, trained, batch.number, rank, number)
            for number, segment_ids in enumerate(batch.segment_ids)
        ]

    def trained(self, tokens_total: int) -> Trained:
        """How far the parts are then; one that is not there counts as trained."""
        shares = {part: (tokens_total - begin) / self._tokens_of_run for part, begin in self._begin.items()}
        return Trained.alike(1.0)._replace(**shares)

    def state(self) -> dict[str, int]:
        """Everything a restart needs, as JSON; the same on all ranks."""
        return self._begin
