"""model/decoding/drafts/speculation.py: with drafts the same greedy tokens, drawn ones of the same distribution, and no
look at a value in the middle of a round."""

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.decoding.decoder import Weights
from model.decoding.drafts.acceptance import block_verified
from model.decoding.drafts.speculation import History, Pace, make_round, speculated_tokens
from model.decoding.generate import generate_tokens
from model.decoding.processing import Penalties, probabilities
from model.decoding.settings import GenerationSettings
from model.decoding.torch_decoder import TorchDecoder

VOCAB_SIZE, EOS = 40, 0
SHAPE = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "seq_length": 24, "init_std": 0.3}
KINDS = {
    "rotary": {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu", "bias": False},
    "gpt": {},
}
SETTINGS = [
    {},
    {"no_repeat_ngram": 3},
    {"repetition_penalty": 1.3, "no_repeat_ngram": 2},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram": 1},
]


def drafting_model(kind: str) -> TransformerLM:
    torch.manual_seed(0)
    auxiliary = AuxiliaryConfig(enable_draft=True, draft_rollouts=0)
    return TransformerLM(ModelConfig(**{**SHAPE, **KINDS[kind]}), VOCAB_SIZE, auxiliary).eval()


@pytest.fixture(params=KINDS)
def model(request) -> TransformerLM:
    return drafting_model(request.param)


def decoder_of(model: TransformerLM, kernel: bool):
    return Weights(model, "fp32").decoder(1) if kernel else TorchDecoder(model, 1, model.latent.drafter)


def plain(decoder, prompt, settings, sample=0):
    with torch.inference_mode():
        return list(generate_tokens(decoder, [prompt], settings, EOS, [sample], set()))


def drafted(decoder, prompt, settings, sample=0, tempering=None):
    with torch.inference_mode():
        return list(speculated_tokens(decoder, 0, prompt, settings, EOS, sample, set(), tempering))


def by_entropy(logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """An adaptive temperature that changes much from place to place, with both of what it is given."""
    p = logits.float().softmax(-1)
    return (0.3 - 0.5 * torch.special.entr(p).sum(-1) + hidden[:, 0].float().clamp(-1, 1)).exp()


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("changes", SETTINGS)
def test_greedy_tokens_are_the_same(model, kernel, changes):
    """Over several windows, also where it stops early or every token is forbidden."""
    for prompt in ([], [5, 6, 7], list(range(1, 39))):
        for stop_at_eos in (True, False):
            settings = GenerationSettings(max_new_tokens=90, temperature=0, stop_at_eos=stop_at_eos, **changes)
            one, other = (write(decoder_of(model, kernel), prompt, settings) for write in (plain, drafted))
            assert [(token.id, token.stopped) for token in one] == [(token.id, token.stopped) for token in other]


def test_log_probabilities_are_those_of_the_model(model):
    settings = GenerationSettings(max_new_tokens=40, temperature=0, logprobs=3, no_repeat_ngram=3)
    one, other = (write(decoder_of(model, True), [5], settings) for write in (plain, drafted))
    for ours, theirs in zip(one, other, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [id for id, _ in ours.top] == [id for id, _ in theirs.top]


@pytest.mark.parametrize(
    "changes",
    [
        {"top_p": 0.8, "temperature": 0.7, "no_repeat_ngram": 2},
        pytest.param({"top_p": 1.0}, marks=pytest.mark.slow),
        pytest.param({"top_p": 0.9, "temperature": "adaptive", "repetition_penalty": 1.2}, marks=pytest.mark.slow),
    ],
)
def test_drawn_texts_have_the_distribution_of_plain_ones(changes):
    """The first three tokens after a prompt, exactly: the probability of each by the model itself."""
    model = drafting_model("rotary")
    decoder, prompt, runs = decoder_of(model, True), [5, 6], 6000
    tempering = by_entropy if changes.get("temperature") == "adaptive" else None
    found: dict[tuple[int, ...], int] = {}
    for seed in range(runs):
        settings = GenerationSettings(max_new_tokens=5, stop_at_eos=False, seed=seed, **changes)
        ids = tuple(token.id for token in drafted(decoder, prompt, settings, 0, tempering)[:3])
        found[ids] = found.get(ids, 0) + 1

    def shares(written: list[int]) -> torch.Tensor:
        penalties = Penalties(settings, [*prompt, *written], VOCAB_SIZE)
        with torch.inference_mode():
            decoder.lengths[0] = 0
            scores = decoder.read(0, [EOS, *prompt, *written])[0].clone()
            temperature = 1.0 if tempering is None else tempering(scores[None], decoder.hidden[-1:]).clone()
            scores = (penalties.apply(scores) if penalties.active else scores) / temperature
            p = probabilities(scores[None], settings)[0].double()
        return p / p.sum()

    statistic, classes, rest_seen, rest_expected = 0.0, 0, runs, float(runs)
    first = shares([])
    for a in first.topk(6).indices.tolist():
        second = shares([a])
        for b in second.topk(5).indices.tolist():
            third = shares([a, b])
            for c in third.topk(4).indices.tolist():
                expected = runs * float(first[a] * second[b] * third[c])
                if expected >= 5:
                    seen = found.get((a, b, c), 0)
                    statistic, classes = statistic + (seen - expected) ** 2 / expected, classes + 1
                    rest_seen, rest_expected = rest_seen - seen, rest_expected - expected
    statistic += (rest_seen - rest_expected) ** 2 / rest_expected
    assert classes > 10
    p_value = torch.special.gammaincc(torch.tensor(classes / 2.0), torch.tensor(statistic / 2)).item()
    assert p_value > 0.001


def test_typical_acceptance_is_another_distribution_and_keeps_more(model):
    settings = GenerationSettings(max_new_tokens=60, temperature=0, stop_at_eos=False, speculate="typical")
    texts = [[token.id for token in drafted(decoder_of(model, True), [3], settings)] for _ in range(2)]
    assert texts[0] == texts[1] and len(texts[0]) == 60


@pytest.mark.parametrize("changes", SETTINGS)
def test_a_history_penalises_as_penalties_do(changes):
    torch.manual_seed(0)
    settings = GenerationSettings(**changes)
    tokens = torch.randint(12, (30,)).tolist()
    history = History(settings, tokens[:20], 10, torch.zeros(VOCAB_SIZE))
    for ahead in range(10):
        logits = torch.randn(VOCAB_SIZE)
        penalties = Penalties(settings, tokens[: 20 + ahead], VOCAB_SIZE)
        expected = penalties.apply(logits.clone()) if penalties.active else logits
        assert torch.equal(history.scores(logits, ahead), expected)
        history.write(ahead, torch.tensor(tokens[20 + ahead]))


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.0}, {"top_p": 0.8}, {"top_k": 5, "no_repeat_ngram": 2}, {"temperature": "adaptive"}],
)
@pytest.mark.parametrize("speculate", [True, "typical"])
def test_a_round_is_one_graph(model, changes, speculate):
    """No value is looked at in it, so that a CUDA graph can hold it; and compiled it decides the same."""
    torch.compiler.reset()  # each case is a graph of its own
    settings = GenerationSettings(**{"repetition_penalty": 1.2, "speculate": speculate, **changes})
    results = []
    for compiled in (False, True):
        decoder = decoder_of(model, False)
        with torch.no_grad():
            logits = decoder.read(0, [EOS, 4, 5, 6])
            history = History(settings, [4, 5, 6, 7], 20, logits[0], by_entropy if settings.adaptive else None)
            decoder.place()

            def run(hidden, token, uniforms, decoder=decoder, history=history):
                return make_round(decoder, hidden, token, 3, history, uniforms)

            run = torch.compile(run, backend="eager", fullgraph=True) if compiled else run
            uniforms = torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            results.append(run(decoder.hidden[-1].clone(), torch.tensor(7), uniforms))
    assert torch.equal(results[0].tokens, results[1].tokens) and torch.equal(results[0].stood, results[1].stood)


def test_the_pace_follows_what_stood():
    pace = Pace(3)
    assert pace.next() == 3
    for _ in range(40):
        pace.learn(3, 0)
    assert pace.next() == 1  # one is always tried, so that better times are noticed
    assert max(pace.next() for _ in range(20)) == 3
    for _ in range(40):
        pace.learn(3, 3)
    assert {pace.next() for _ in range(20)} == {3}


def test_drafts_stand_where_the_drafter_is_the_model():
    """A drafter that says what the model will say loses nothing: all drafts stand."""
    torch.manual_seed(0)
    shares = torch.rand(1, 4, 9)
    drafts = torch.tensor([[1, 5, 2]])
    count, _ = block_verified(drafts, shares[:, :3], shares, torch.full((1, 3), 0.999, dtype=torch.float64))
    assert count == 3
