"""model/loss_kernel.py against torch's operators: on a GPU, or without one by Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

ROWS, COLUMNS, IGNORED = 7, 9001, -100  # three blocks, the last one a part


def check(device: str) -> None:
    from model.loss_kernel import nll_and_gradient

    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for weighted in (False, True):
            logits = (3 * torch.randn(ROWS, COLUMNS, device=device)).to(dtype)
            logits[:, -5:] = -torch.inf
            labels = torch.tensor([0, 5000, IGNORED, COLUMNS - 6, 17, 4096, 4095], device=device)
            weights = torch.linspace(0.0, 2.0, ROWS, device=device) if weighted else None
            exact = logits.double().requires_grad_()
            expected = torch.nn.functional.cross_entropy(exact, labels, reduction="none", ignore_index=IGNORED)
            (expected if weights is None else expected * weights).sum().backward()
            alone, token_nll = logits.clone(), torch.full((ROWS,), 7.0, device=device)
            nll_and_gradient(alone, labels, weights, token_nll, IGNORED, False)
            assert torch.equal(alone, logits)
            nll_and_gradient(logits, labels, weights, token_nll, IGNORED, True)
            torch.testing.assert_close(token_nll, expected.float(), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                logits.double(), exact.grad, atol=1e-6, rtol=1e-2 if dtype != torch.float32 else 1e-4
            )


def test_losses_and_gradients_are_those_of_float64():
    if torch.cuda.is_available():
        check("cuda")
        return
    # the interpreter is chosen when triton is imported
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    code = "from tests.unit.model.test_loss_kernel import check; check('cpu')"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
