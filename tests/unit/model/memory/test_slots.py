"""model/memory/slots.py: text that grows beyond the window is written with a memory, defined as scores are."""

import pytest
import torch

from model.decoding.beam import search
from model.decoding.decoder import KernelDecoder, Weights
from model.decoding.generate import generate_tokens
from model.decoding.settings import GenerationSettings
from model.memory import begin, read_document, slide

WINDOW = 16  # of `make`

EOS = 0


def write(decoder, prompts: list[list[int]], count: int, **settings) -> list[list[int]]:
    checked = GenerationSettings(max_new_tokens=count, temperature=0.0, stop_at_eos=False, **settings)
    texts: list[list[int]] = [[] for _ in prompts]
    for token in generate_tokens(decoder, prompts, checked, EOS, [0] * len(prompts), set()):
        texts[token.row].append(token.id)
    return texts


@torch.no_grad()
def by_teacher_forcing(model, document: list[int]) -> tuple[list[int], list[float]]:
    """The likeliest token after each one of a document, and by how much it is likelier than the next."""
    states = torch.cat([hidden for _, hidden in read_document(model, torch.tensor(document))])
    best = model.logits(states).topk(2)
    return best.indices[:, 0].tolist(), (best.values[:, 0] - best.values[:, 1]).tolist()


@pytest.mark.parametrize("changes", [{}, {"positions": "rotary", "norm": "rms"}])
@pytest.mark.parametrize("length", [0, 5, WINDOW - 1, WINDOW, 3 * WINDOW + 3])
def test_text_is_what_teacher_forcing_finds_likeliest(make, token_ids, changes, length):
    model = make(**changes)
    decoder, prompt = Weights(model, "fp32").decoder(1), token_ids[100 : 100 + length].tolist()
    (text,) = write(decoder, [prompt], 60)
    likeliest, margins = by_teacher_forcing(model, [EOS, *prompt, *text[:-1]])
    assert min(margins[length:]) > 1e-5  # else rounding could decide
    assert text == likeliest[length:]


def test_text_beyond_the_window_differs_where_memory_is_cut(make, token_ids):
    model = make()
    decoder, prompt = Weights(model, "fp32").decoder(1), token_ids[100:110].tolist()
    (text,) = write(decoder, [prompt], 60)
    with torch.no_grad():
        model.memory.places.weight.mul_(10)
    (other,) = write(Weights(model, "fp32").decoder(1), [prompt], 60)
    first = next(at for at, pair in enumerate(zip(text, other, strict=True)) if pair[0] != pair[1])
    assert WINDOW - len(prompt) <= first < 60  # within the window nothing has changed


def test_prompts_are_written_as_each_alone_and_a_slot_forgets(make, token_ids):
    weights = Weights(make(), "fp32")
    prompts = [token_ids[at : at + length].tolist() for at, length in ((100, 3), (200, 40), (300, 15))]
    decoder = weights.decoder(3)
    together = write(decoder, prompts, 40)
    assert together == [write(weights.decoder(1), [prompt], 40)[0] for prompt in prompts]
    assert write(decoder, prompts[::-1], 40) == together[::-1]


def test_a_window_slides_by_half_with_a_memory_and_without(make, token_ids):
    remembering, plain = (make(memory_tokens=tokens) for tokens in (4, 0))
    for model, expected in ((remembering, WINDOW // 2 + 1), (plain, WINDOW // 2)):
        decoder = Weights(model, "fp32").decoder(1)
        decoder.read(0, token_ids[:WINDOW].tolist())
        assert slide(decoder, 0) == expected and decoder.lengths == [0]
        assert (decoder.memory is None) == (model is plain)
        begin(decoder, 0)
    assert isinstance(decoder, KernelDecoder) or Weights(plain, "fp32").on_kernel is False
    assert not Weights(remembering, "fp32").on_kernel


def test_beam_search_reads_nothing_of_an_earlier_text(make, token_ids):
    model = make()
    weights = Weights(model, "fp32")
    decoder, settings = weights.decoder(2), GenerationSettings(max_new_tokens=6, temperature=0.0, num_beams=2)
    fresh = search(weights.decoder(2), token_ids[:4].tolist(), settings, EOS)
    write(decoder, [token_ids[:40].tolist(), token_ids[50:90].tolist()], 20)
    assert search(decoder, token_ids[:4].tolist(), settings, EOS) == fresh


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_weights_write_beyond_the_window(make, token_ids, precision):
    decoder = Weights(make(), precision).decoder(1)
    (text,) = write(decoder, [token_ids[:10].tolist()], 40)
    assert len(text) == 40 and decoder.memory is not None
