"""model/products/kernel.py and sgemm.c against products in fp64."""

import itertools

import pytest
import torch

from model.products import kernel

pytestmark = pytest.mark.skipif(kernel.library() is None, reason="there is no C compiler")

# Rows, columns and depth: single ones, less than a tile, more than a block of each, and whole tiles.
SIZES = [(1, 1, 1), (7, 33, 5), (97, 2070, 300), (300, 17, 600), (513, 100, 257), (96, 64, 256), (1, 40, 9), (40, 1, 9)]


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_products_of_all_layouts_equal_those_in_fp64(m: int, n: int, k: int):
    generator = torch.Generator().manual_seed(0)
    for turned_a, turned_b, add in itertools.product((False, True), repeat=3):
        a = torch.randn(k, m, generator=generator).t() if turned_a else torch.randn(m, k, generator=generator)
        b = torch.randn(n, k, generator=generator).t() if turned_b else torch.randn(k, n, generator=generator)
        whole = torch.randn(m + 1, n + 3, generator=generator)
        out, beside = whole[:m, :n], (whole[m].clone(), whole[:, n:].clone())
        expected = a.double() @ b.double() + (out.double() if add else 0)
        assert kernel.multiply(a, b, out, add) is out
        torch.testing.assert_close(out.double(), expected, atol=1e-5 * k**0.5, rtol=1e-5)
        assert torch.equal(whole[m], beside[0]) and torch.equal(whole[:, n:], beside[1])


def test_elements_do_not_depend_on_threads():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(301, 517, generator=generator), torch.randn(517, 130, generator=generator)
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(kernel.multiply(a, b, torch.empty(301, 130)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_infinities_and_nan_stay():
    a = torch.eye(20)
    b = torch.randn(20, 20)
    b[3, 4], b[5, 6] = torch.inf, torch.nan
    made, expected = kernel.multiply(a, b, torch.empty(20, 20)), a @ b
    assert torch.equal(made.isnan(), expected.isnan()) and torch.equal(made.isinf(), expected.isinf())


def test_without_a_compiler_there_is_no_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    kernel.library.cache_clear()
    try:
        assert kernel.library() is None
    finally:
        kernel.library.cache_clear()
