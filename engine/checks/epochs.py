"""What a run says before it trains, where its text is so small that it will be read very often."""

from collections.abc import Mapping

from engine.formatting import count
from sources.amounts import Amount, estimate
from sources.config import DataConfig
from sources.registry import OpenedSources
from sources.rows.tokenizer import TextTokenizer

MOST_EPOCHS = 4  # up to which repeating a text costs next to nothing (Muennighoff et al., arXiv 2305.16264)
BYTES_PER_TOKEN = 4.0  # where no text was read


def advise_on_epochs(
    data: DataConfig, opened: OpenedSources, tokenizer: TextTokenizer, token_budget: int
) -> str | None:
    """Return a sentence about the sources of which a run of `token_budget` tokens makes more than MOST_EPOCHS epochs.

    None where there are none, and of sources whose amount of text cannot be told within a second.
    """
    tokens: dict[str, float] = {}
    for name, source in opened.sources.items():
        if (amount := opened.amounts.get(name) or estimate(source)) is not None:
            tokens[name] = amount.num_bytes / _bytes_per_token(amount, tokenizer)
    often = {
        name: epochs for name, epochs in _epochs(data, opened, tokens, token_budget).items() if epochs > MOST_EPOCHS
    }
    if not often:
        return None
    parts = [f"{name} (about {count(tokens[name])} tokens) {_rounded(epochs)} times" for name, epochs in often.items()]
    return f"A run reads {_listed(parts)}. Add text, or expect the model to memorise it."


def _epochs(
    data: DataConfig, opened: OpenedSources, tokens: Mapping[str, float], token_budget: int
) -> dict[str, float]:
    """Return how often a run reads each source whose tokens are known."""
    names = list(opened.sources)
    if data.mix_strategy == "sequential":  # as often as all of them together
        if len(tokens) < len(names):
            return {}
        return dict.fromkeys(names, token_budget / sum(tokens.values()))
    weights = {name: data.weights()[name] for name in names}
    share = token_budget / sum(weights.values())
    return {name: share * weights[name] / number for name, number in tokens.items()}


def _bytes_per_token(amount: Amount, tokenizer: TextTokenizer) -> float:
    if not amount.sample:
        return BYTES_PER_TOKEN
    (ids,) = tokenizer.encode_batch([amount.sample])
    return len(amount.sample.encode("utf-8", "replace")) / max(1, len(ids))


def _rounded(number: float) -> str:
    """A number in two digits."""
    return f"{float(f'{number:.2g}'):,.0f}"


def _listed(parts: list[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
