"""model/fitting/development.py: texts as a model reads them."""

import pytest
import torch

from model.fitting.development import document_rows


def test_rows_hold_every_token_once_after_the_token_before_it():
    texts = ["a" * 30, "b" * 2000, ""]
    rows = document_rows(texts, lambda text: [ord(letter) for letter in text], 0, 16)
    assert all(2 <= len(row) <= 17 for row in rows)
    targets = torch.cat([row[1:] for row in rows]).tolist()
    assert targets == [ord("a")] * 30 + [0] + [ord("b")] * 2000 + [0, 0]
    assert rows[0].tolist() == [0] + [ord("a")] * 16 and rows[1].tolist() == [ord("a")] * 15 + [0]


def test_too_little_text_and_no_list():
    with pytest.raises(ValueError, match="the texts have 4 tokens; give at least 1,000"):
        document_rows(["abc"], lambda text: [1] * len(text), 0, 16)
    with pytest.raises(ValueError, match="give a list of texts"):
        document_rows("abc", lambda text: [1] * len(text), 0, 16)
