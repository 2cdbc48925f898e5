"""Whether rows are long enough for the parts of the lookahead core that are on."""

import math

from .auxiliary import AuxiliaryConfig


def require_room(auxiliary: AuxiliaryConfig, seq_length: int, where: str = "model.seq_length is") -> None:
    """Raises ValueError where a part that is on needs longer rows than seq_length, which the preset has `where`."""
    needed: list[tuple[str, int, int]] = []  # a key, its value, and the tokens of a row that this needs
    if auxiliary.rolls_out:
        needed.append(("rollout_depth", auxiliary.rollout_depth, auxiliary.rollout_depth + 1))
    if auxiliary.enable_draft:
        needed.append(("draft_length", auxiliary.draft_length, auxiliary.draft_length + 1))
    if auxiliary.enable_span_contrastive:
        needed.append(("span_length", auxiliary.span_length, auxiliary.span_length + 1))
    if auxiliary.enable_value:
        needed += [("value_horizons", horizon, math.ceil(horizon / 2)) for horizon in auxiliary.value_horizons]
    for key, value, least in needed:
        if seq_length < least:
            raise ValueError(
                f"auxiliary.{key}: {value} needs rows of {least} tokens, and {where} {seq_length}; "
                "lower the one or raise the other."
            )
