"""A tokenizer as transformers loads it: tokenizer.json and tokenizer_config.json, and back.

Prompts are read after an end-of-text token here, as every document is in training. So the exported tokenizer puts that
token before every text, as a beginning-of-text token: by the post-processor in tokenizer.json, which every program that
reads that file heeds. What looks like a special token in a text is text (`split_special_tokens`), as in training.
"""

import json
from typing import Any

from tokenizers import Tokenizer

from .errors import ExportError


def end_of_text(tokenizer: Tokenizer, eos_token_id: int) -> str:
    """The end-of-text token's own text. Raises ExportError where the tokenizer has none for that id."""
    token = tokenizer.id_to_token(eos_token_id)
    if token is None:
        raise ExportError(
            f"the end-of-text id {eos_token_id} is no token of the tokenizer, which other programs need; export a "
            "model whose tokenizer has an end-of-text token."
        )
    return token


def exported_tokenizer(tokenizer: Tokenizer, eos_token_id: int) -> dict[str, Any]:
    """The contents of tokenizer.json, which puts the end-of-text token before each text."""
    contents = json.loads(tokenizer.to_str())
    begin = _begin_of_text(end_of_text(tokenizer, eos_token_id), eos_token_id)
    own = contents["post_processor"]
    # A byte-level one sets offsets only. Any other adds special tokens, which texts here never get.
    byte_level = own is not None and own["type"] == "ByteLevel"
    contents["post_processor"] = {"type": "Sequence", "processors": [own, begin]} if byte_level else begin
    return contents


def imported_tokenizer(contents: dict[str, Any], eos_token_id: int) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without what `exported_tokenizer` has added.

    Raises ExportError where the library cannot read it.
    """
    try:
        token = Tokenizer.from_str(json.dumps(contents)).id_to_token(eos_token_id)
        added = _begin_of_text(token, eos_token_id) if token is not None else None
        processor = contents["post_processor"]
        if processor == added:
            contents = {**contents, "post_processor": None}
        elif processor and processor["type"] == "Sequence" and processor["processors"][1:] == [added]:
            contents = {**contents, "post_processor": processor["processors"][0]}
        return Tokenizer.from_str(json.dumps(contents))
    except Exception as error:  # the library raises bare Exceptions
        raise ExportError("tokenizer.json cannot be read; export it again, or use a copy.") from error


def tokenizer_config(tokenizer: Tokenizer, eos_token_id: int, seq_length: int) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    token = end_of_text(tokenizer, eos_token_id)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token,
        "eos_token": token,
        "pad_token": token,
        "unk_token": getattr(tokenizer.model, "unk_token", None) or token,  # CTranslate2 asks for one, as GPT-2's has
        "model_max_length": seq_length,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }


def _begin_of_text(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts `token` before a text, or before the first of a pair."""
    begin, first = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
