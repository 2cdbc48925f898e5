"""model/memory/windows.py: rows are read window by window, each behind a memory of the one before."""

import pytest
import torch

from model.loss import IGNORE_INDEX
from model.memory import behind_memory, read_windows
from model.tensors import Memory

WINDOW = 16  # of `make`


def rows(token_ids: torch.Tensor, windows: int, number: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row one document."""
    length = windows * WINDOW
    input_ids, labels = (token_ids[at : at + number * length].view(number, length) for at in (0, 1))
    return input_ids.clone(), labels.clone(), torch.zeros(number, length, dtype=torch.int32)


@pytest.mark.parametrize(
    "changes", [{}, {"positions": "rotary"}, {"value_embeddings": "tables", "bigram_rows": 50, "embedding_context": 2}]
)
def test_a_window_reads_the_memory_of_the_one_before(make, token_ids, changes):
    model = make(**changes)
    input_ids, labels, documents = rows(token_ids, 3)
    with torch.no_grad():
        read = read_windows(model, input_ids, documents, None)
        first, second, third = input_ids.split(WINDOW, dim=1)
        state = model.hidden_states(first)
        expected = [state]
        for window in (second, third):
            tokens, present = model.memory.summarise(state)
            state = model.hidden_states(window, memory=Memory(tokens, present, None))
            expected.append(state)
        alone = model.hidden_states(second)
    torch.testing.assert_close(read.final, torch.cat(expected, dim=1))
    assert (expected[1] - alone).abs().max() > 0.1  # the memory does something
    output = model(input_ids, labels, documents=documents)
    torch.testing.assert_close(output.loss_sum, output.token_nll.sum())


def test_what_is_behind_no_memory_is_as_without_it(make, token_ids):
    """Windows that begin a document, also in the middle of a row; and other documents beside one that goes on."""
    model = make()
    input_ids, labels, documents = rows(token_ids, 2, number=3)
    documents[0, WINDOW:] = 1
    documents[1, 5:] = 1  # goes on to the end of the second window
    documents[1, WINDOW + 7 :] = 2
    documents[2, WINDOW - 4 :] = -1
    labels[2, WINDOW - 4 :] = IGNORE_INDEX
    behind = behind_memory(documents, WINDOW)
    assert behind.sum() == 7 and behind[1, WINDOW : WINDOW + 7].all()
    with torch.no_grad():
        output = model(input_ids, labels, documents, documents=documents)
        plain = model(input_ids.view(-1, WINDOW), labels.view(-1, WINDOW), documents.view(-1, WINDOW))
    nll = plain.token_nll.view(labels.shape)
    torch.testing.assert_close(output.token_nll[~behind], nll[~behind], atol=1e-4, rtol=1e-4)
    assert (output.token_nll[behind] - nll[behind]).abs().mean() > 0.01
    assert output.memory.tolist() == [[0, 0], pytest.approx([output.token_nll[behind].sum().item(), 7])]


@pytest.mark.parametrize("apart", [False, True])
def test_only_states_of_the_same_document_are_summed_up(make, token_ids, apart):
    model = make()
    input_ids, labels, documents = rows(token_ids, 2, number=1)
    documents[0, 8:] = 1  # the second half of the first window and all of the second
    changed = input_ids.clone()
    changed[0, 2] += 1
    with torch.no_grad():
        segment_ids = documents if apart else None
        before, after = (model(ids, labels, segment_ids, documents=documents) for ids in (input_ids, changed))
    differs = (before.token_nll != after.token_nll)[0]
    assert differs[2] and not differs[:2].any()
    # Without the document mask the second document's own states have read the first one's tokens.
    assert differs[WINDOW:].any() != apart


def test_nothing_of_a_row_reaches_what_stands_before_it(make, token_ids):
    model = make()
    input_ids, _, documents = rows(token_ids, 3, number=1)
    for at in (5, WINDOW, 2 * WINDOW + 3):
        changed = input_ids.clone()
        changed[0, at] += 1
        with torch.no_grad():
            before, after = (read_windows(model, ids, documents, None).final for ids in (input_ids, changed))
        differs = (before != after).any(dim=-1)[0]
        assert not differs[:at].any() and differs[at]
        assert differs[WINDOW * (at // WINDOW + 1) :].any() == (at < 2 * WINDOW)


def test_gradients_flow_through_all_boundaries(make, token_ids):
    model = make()
    input_ids, labels, documents = rows(token_ids, 3, number=1)
    labels[0, : 2 * WINDOW] = IGNORE_INDEX  # only the last window's loss counts
    model(input_ids, labels, documents=documents).loss_sum.backward()
    gradient = model.tokens.weight.grad.abs().sum(dim=1)
    only_first = set(input_ids[0, :WINDOW].tolist()) - set(input_ids[0, WINDOW:].tolist())
    head_alone = model.lm_head is None  # a tied head moves all rows a little
    assert head_alone and only_first
    assert model.memory.projection.weight.grad.abs().max() > 0 and model.memory.places.weight.grad.abs().max() > 0
    first = gradient[sorted(only_first)]
    model.zero_grad()
    documents[0, WINDOW:] = 1  # without a memory of the first window nothing but the head moves these rows
    model(input_ids, labels, documents=documents).loss_sum.backward()
    assert (model.tokens.weight.grad.abs().sum(dim=1)[sorted(only_first)] != first).all()


def test_another_documents_memory_changes_what_is_expected(make, token_ids):
    model = make()
    input_ids, labels, documents = rows(token_ids, 2)
    swapped = torch.cat([input_ids.flip(0)[:, :WINDOW], input_ids[:, WINDOW:]], dim=1)
    with torch.no_grad():
        own, others = (model(ids, labels, documents=documents).token_nll[:, WINDOW:] for ids in (input_ids, swapped))
    assert (own - others).abs().mean() > 0.01


def test_the_reconstruction_joins_the_loss_by_its_weight(make, token_ids):
    input_ids, labels, documents = rows(token_ids, 2)
    plain, reconstructing = make(), make(weight=0.5)
    state = reconstructing.state_dict()
    plain.load_state_dict({name: tensor for name, tensor in state.items() if "reconstruction" not in name})
    expected = plain(input_ids, labels, documents=documents)
    output = reconstructing(input_ids, labels, documents=documents)
    (lost, number), _ = output.memory.tolist()
    assert number == 2 * WINDOW and lost / number > 1
    added = 0.5 * lost / number * labels.numel()
    torch.testing.assert_close(output.loss_sum.item(), expected.loss_sum.item() + added, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(output.token_nll, expected.token_nll)
    output.loss_sum.backward()
    assert reconstructing.memory.reconstruction.read.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert reconstructing(input_ids, labels, documents=documents).loss_sum.item() == pytest.approx(
            expected.loss_sum.item(), rel=1e-6
        )


def test_compiled_once_for_all_documents(make, token_ids):
    model = make(weight=0.5)
    input_ids, labels, documents = rows(token_ids, 2)
    other = documents.clone()
    other[0, 20:] = 1
    expected = [model(input_ids, labels, documents=of).loss_sum for of in (documents, other)]
    model.compile(backend="aot_eager", fullgraph=True)
    losses = [model(input_ids, labels, documents=documents).loss_sum]
    with torch.compiler.set_stance("fail_on_recompile"):
        losses.append(model(input_ids, labels, documents=other).loss_sum)
    torch.testing.assert_close(losses, expected)


def test_blocks_that_are_computed_again_have_the_same_gradients(make, token_ids):
    gradients = []
    for checkpointed in (False, True):
        model = make()
        model.checkpoint_activations = checkpointed
        input_ids, labels, documents = rows(token_ids, 2)
        model(input_ids, labels, documents=documents).loss_sum.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
