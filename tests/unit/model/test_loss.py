"""model/loss.py against torch's own cross-entropy in float64."""

import pytest
import torch
import torch.nn.functional as F

from model import loss as linear_loss
from model import loss_kernel
from model.loss import linear_cross_entropy


def problem(dtype=torch.float32, vocab_size=200, rows=256, tokens=70):
    torch.manual_seed(2)
    hidden = torch.randn(tokens, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(rows, 16, dtype=dtype, requires_grad=True)
    labels = torch.arange(tokens) * 7 % vocab_size
    labels[::9] = -100
    bias = torch.zeros(rows, dtype=dtype)
    bias[vocab_size:] = -torch.inf
    return hidden, weight, bias if vocab_size < rows else None, labels


def reference(hidden, weight, bias, labels, upstream, token_weights=None):
    """Loss, token NLLs and both gradients by plain means in float64."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logits = F.linear(hidden, weight, None if bias is None else bias.double())
    token_nll = F.cross_entropy(logits, labels, reduction="none")
    loss_sum = (token_nll if token_weights is None else token_nll * token_weights.double()).sum()
    (loss_sum * upstream).backward()
    return loss_sum, token_nll, hidden.grad, weight.grad


def token_weights_for(labels):
    """(N,) fp32 from 0 to 2."""
    return torch.linspace(0.0, 2.0, len(labels))


@pytest.fixture
def many_chunks(monkeypatch):
    monkeypatch.setattr(linear_loss, "CPU_CHUNK_BYTES", 16 * 4 * 256)  # 16 tokens of 256 rows: the last chunk is a part


@pytest.mark.parametrize("vocab_size", [200, 256])
def test_loss_and_gradients_equal_float64_cross_entropy(many_chunks, vocab_size):
    hidden, weight, bias, labels = problem(vocab_size=vocab_size)
    loss, token_nll = linear_cross_entropy(hidden, weight, bias, labels)
    (loss * 0.25).backward()
    expected = reference(hidden, weight, bias, labels, 0.25)
    for ours, theirs in zip((loss, token_nll, hidden.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=2e-5, rtol=2e-5)
    assert loss.dtype == token_nll.dtype == torch.float32 and not token_nll.requires_grad
    assert (token_nll[labels == -100] == 0).all() and (hidden.grad[labels == -100] == 0).all()
    if bias is not None:
        assert (weight.grad[vocab_size:] == 0).all()


def test_token_weights_scale_the_sum_and_the_gradients_only(many_chunks):
    hidden, weight, bias, labels = problem()
    token_weights = token_weights_for(labels)
    loss, token_nll = linear_cross_entropy(hidden, weight, bias, labels, token_weights)
    (loss * 0.25).backward()
    expected = reference(hidden, weight, bias, labels, 0.25, token_weights)
    for ours, theirs in zip((loss, token_nll, hidden.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=2e-5, rtol=2e-5)
    assert torch.equal(token_nll, linear_cross_entropy(hidden, weight, bias, labels)[1])
    assert not hidden.grad[0].any() and not hidden.grad[labels == -100].any()


def test_token_weights_of_one_change_no_bit(many_chunks):
    hidden, weight, bias, labels = problem()
    results = []
    for token_weights in (None, torch.ones(len(labels))):
        loss, token_nll = linear_cross_entropy(hidden, weight, bias, labels, token_weights)
        results.append((loss, token_nll, *torch.autograd.grad(loss, (hidden, weight))))
    assert all(torch.equal(plain, weighted) for plain, weighted in zip(*results, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_float64_is_kept(many_chunks, weighted):
    hidden, weight, bias, labels = problem(torch.float64)
    token_weights = token_weights_for(labels) if weighted else None
    loss, _ = linear_cross_entropy(hidden, weight, bias, labels, token_weights)
    loss.backward()
    expected = reference(hidden, weight, bias, labels, 1.0, token_weights)
    torch.testing.assert_close(loss, expected[0], atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(weight.grad, expected[3], atol=1e-12, rtol=1e-12)


def test_extreme_logits_stay_finite():
    hidden, weight, bias, labels = problem()
    loss, _ = linear_cross_entropy(hidden * 300, weight, bias, labels)
    loss.backward()
    expected = reference(hidden * 300, weight, bias, labels, 1.0)
    torch.testing.assert_close(loss, expected[0].float())
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_bf16_autocast(many_chunks, weighted):
    hidden, weight, bias, labels = problem()
    token_weights = token_weights_for(labels) if weighted else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, token_nll = linear_cross_entropy(hidden, weight, bias, labels, token_weights)
    loss.backward()
    assert loss.dtype == token_nll.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    expected = reference(hidden, weight, bias, labels, 1.0, token_weights)
    assert abs(loss.item() / expected[0].item() - 1) < 2e-3
    for ours, theirs in ((hidden.grad, expected[2]), (weight.grad, expected[3])):
        assert (ours - theirs).norm() / theirs.norm() < 0.02  # bf16 keeps 8 bits: 0.4% a number
    # it did run in bf16: fp32 is far closer
    assert (token_nll - expected[1]).abs().max() > 1e-4


def test_without_gradients_none_are_computed():
    hidden, weight, bias, labels = problem()
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden, weight, bias, labels)
    assert not loss.requires_grad
    _, _, grad_hidden, grad_weight = linear_loss._fused(
        hidden, weight, bias, labels, None, torch.float32, False, False, 0.0, 0.0
    )
    assert grad_hidden.numel() == grad_weight.numel() == 0
    torch.testing.assert_close(loss, reference(hidden, weight, bias, labels, 1.0)[0].float())


def test_nothing_but_ignored_labels_is_zero_loss():
    hidden, weight, bias, labels = problem()
    loss, token_nll = linear_cross_entropy(hidden, weight, bias, torch.full_like(labels, -100))
    loss.backward()
    assert loss == 0 and not token_nll.any() and not hidden.grad.any() and not weight.grad.any()


def test_whole_batch_logits_are_never_held(monkeypatch):
    """The largest tensor made along the way is a chunk's, not the batch's."""
    monkeypatch.setattr(linear_loss, "CPU_CHUNK_BYTES", 4 * 1024 * 8)
    hidden = torch.randn(512, 16, requires_grad=True)
    weight = torch.randn(1024, 16, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, None, torch.arange(512))[0].backward()
    largest = max(event.self_cpu_memory_usage / max(event.count, 1) for event in profile.key_averages())
    assert largest < 512 * 1024 * 4 / 4


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_checks_and_operator_contract(weighted):
    hidden, weight, bias, labels = problem(torch.float64, tokens=12, rows=24, vocab_size=20)
    token_weights = token_weights_for(labels) if weighted else None
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, bias, labels, token_weights)[0], (hidden, weight)
    )
    torch.library.opcheck(
        linear_loss._fused,
        (hidden, weight, bias, labels, token_weights, torch.float64, True, False, 0.0, 0.0),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("softcap", "z_loss"), [(3.0, 0.0), (0.0, 0.02), (3.0, 0.02)])
def test_capped_logits_and_the_z_loss_equal_plain_means(many_chunks, softcap, z_loss, weighted):
    hidden, weight, bias, labels = problem()
    token_weights = token_weights_for(labels) if weighted else None
    loss, token_nll = linear_cross_entropy(hidden, weight, bias, labels, token_weights, softcap, z_loss)
    (loss * 0.25).backward()
    h, w = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logits = F.linear(h, w)
    logits = (softcap * (logits / softcap).tanh() if softcap else logits) + bias.double()
    expected_nll = F.cross_entropy(logits, labels, reduction="none")
    each = expected_nll + z_loss * logits.logsumexp(1).square() * (labels != -100)
    expected = (each if token_weights is None else each * token_weights.double()).sum()
    (expected * 0.25).backward()
    pairs = ((loss, expected), (token_nll, expected_nll), (hidden.grad, h.grad), (weight.grad, w.grad))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs.float(), atol=2e-5, rtol=2e-5)
    assert not weight.grad[200:].any() and not hidden.grad[labels == -100].any()


def test_a_cap_and_a_z_loss_pass_the_gradient_check():
    hidden, weight, bias, labels = problem(torch.float64, tokens=12, rows=24, vocab_size=20)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, bias, labels, None, 2.0, 0.1)[0], (hidden, weight)
    )


def test_a_compiled_model_compiles_capped_logits(many_chunks):
    hidden, weight, bias, labels = problem()

    def loss_of(h, w):
        return linear_cross_entropy(h, w, bias, labels, None, 3.0, 0.02)

    eager = loss_of(hidden, weight)
    expected = torch.autograd.grad(eager[0], (hidden, weight))
    made = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(hidden, weight)
    torch.testing.assert_close(made, eager)
    torch.testing.assert_close(torch.autograd.grad(made[0], (hidden, weight)), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_under_torch_compile_without_a_graph_break(dynamic, weighted):
    hidden, weight, bias, labels = problem()

    def loss_of(h, w):
        token_weights = h.detach().square().sum(1) if weighted else None
        return linear_cross_entropy(h.tanh(), w, bias, labels[: len(h)], token_weights)[0]

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    eager = loss_of(hidden, weight)
    expected = torch.autograd.grad(eager, (hidden, weight))
    loss = compiled(hidden, weight)
    actual = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(compiled(hidden[:50], weight), loss_of(hidden[:50], weight))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_compiled_model_compiles_nlls_of_bf16_logits(many_chunks, weighted, monkeypatch):
    calls = []
    make = linear_loss._compiled_nll_and_gradient
    monkeypatch.setattr(linear_loss, "_compiled_nll_and_gradient", lambda: calls.append(1) or make())
    hidden, weight, bias, labels = problem()
    token_weights = token_weights_for(labels) if weighted else None

    def loss_of(h, w):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear_cross_entropy(h, w, bias, labels, token_weights)

    eager, eager_nll = loss_of(hidden, weight)
    assert not calls
    expected = torch.autograd.grad(eager, (hidden, weight))
    summed, token_nll = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(hidden, weight)
    assert len(calls) == 5, "one of each chunk"
    torch.testing.assert_close((summed, token_nll), (eager, eager_nll))
    for ours, theirs in zip(torch.autograd.grad(summed, (hidden, weight)), expected, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 1e-3  # a bit of bf16 here and there
    assert not any(torch.compile(loss_of, backend="aot_eager")(hidden * 300, weight)[1].isnan())


def test_the_kernel_is_not_used_where_it_cannot_be_launched():
    """Triton may be absent or find no compiler; here there is no GPU at all."""
    assert not loss_kernel.works_on(torch.device("cuda", 99)) and not loss_kernel.works_on(torch.device("cpu"))
