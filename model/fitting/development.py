"""Texts to rows of tokens, as a model reads them: each document after an end-of-text token, in pieces of a window."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

LEAST_TOKENS = 1000  # to fit anything by


def document_rows(
    texts: Iterable[str], encode: Callable[[str], list[int]], eos_token_id: int, window: int
) -> list[Tensor]:
    """Rows (2 ... window + 1,) int64, each with the token after its last input; the first token of a row is the last
    one of the row before it. Raises ValueError for too little text."""
    if isinstance(texts, str):
        raise ValueError("give a list of texts, each a document.")
    rows = []
    for text in texts:
        ids = torch.tensor([eos_token_id, *encode(text), eos_token_id])
        rows += [ids[start : start + window + 1] for start in range(0, len(ids) - 1, window)]
    tokens = sum(len(row) - 1 for row in rows)
    if tokens < LEAST_TOKENS:
        raise ValueError(
            f"the texts have {tokens:,} tokens; give at least {LEAST_TOKENS:,}, of documents that the model was not "
            "trained on."
        )
    return rows
