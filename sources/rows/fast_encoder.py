"""A byte-level BPE tokenizer as a tiktoken encoding, which gives the same ids several times as fast.

tiktoken knows one number per token: its id is also its rank among the merges. So ids must rise with the merges, every
byte must be a token, and nothing may happen to a text but splitting by one pattern. The caller still checks on real
text that the ids are equal.
"""

import json
from itertools import pairwise
from typing import Any

import tiktoken
from tokenizers import Tokenizer

# How GPT-2 splits a text (Radford et al., 2019): contractions, words, numbers, the rest, white space.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"

_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that a vocabulary writes as themselves
_UNPRINTED = [byte for byte in range(256) if byte not in _PRINTED]
_BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {chr(256 + n): byte for n, byte in enumerate(_UNPRINTED)}

EDGES = (
    "",
    " ",
    "  \t\r\n\n  \u00a0\u2003\u3000 end",
    "\n" * 50 + " " * 300 + "x" + " " * 7,
    "It's we'll I'VE they'd o'clock 'tis ''s don\u2019t",
    "1 12 123 1234 12345678901234567890 3.14159e-10 \u0663\u0664 \u2167 \u00bd",
    "def f(x):\n\treturn x**2  # {[(<>)]};:'\"\\|`~!@#$%^&*_+-=/?\r\n",
    "na\u00efve e\u0301 \u00df \u0130 \u01c5 \u1e9e \ufb01 \u212b",
    "\u4f60\u597d\u3002\u3053\u3093\u306b\u3061\u306f \uc548\ub155 \u0645\u0631\u062d\u0628\u0627",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \u05e9\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U00020000",
    "\x00\x01\x7f\x80\x85\u200b\u2028\u2029\ufeff\ufffd\uffff\U0010ffff",
    "<|endoftext|> </s> [SEP] <s>[INST]",
    "a\ud800b \udc00\ud83d",
    "".join(map(chr, range(0x20, 0x250))),
)  # texts that tokenizers differ on; the surrogates are not paired


def encoding_of(tokenizer: Tokenizer) -> tiktoken.Encoding | None:
    """Return the tiktoken encoding that gives this tokenizer's ids, or None when its structure does not allow one."""
    described = json.loads(tokenizer.to_str())
    pattern = _pattern(described["pre_tokenizer"])
    ranks = _ranks(described["model"], {token["content"] for token in described["added_tokens"]})
    # An added token that is not special is found inside texts before anything is split.
    plain = described["normalizer"] is None and all(token["special"] for token in described["added_tokens"])
    if pattern is None or ranks is None or not plain:
        return None
    try:
        # tiktoken would drop what the pattern does not match.
        return tiktoken.Encoding("fast", pat_str=rf"{pattern}|[\s\S]", mergeable_ranks=ranks, special_tokens={})
    except ValueError:  # a pattern that tiktoken's regular expressions do not know
        return None


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """Return the one pattern a byte-level pre-tokenizer splits by: GPT-2's, or that of a Split before it."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2_PATTERN
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def _ranks(model: dict[str, Any], added: set[str]) -> dict[bytes, int] | None:
    """Return every token's bytes and id, when ids rise with the merges and all 256 bytes are tokens."""
    if model["type"] != "BPE" or any(
        model[key] for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    ):
        return None
    vocabulary = model["vocab"]
    merged = ["".join(pair) for pair in model["merges"]]
    ids = [vocabulary[token] for token in merged]
    if any(later < earlier for earlier, later in pairwise(ids)):
        return None
    # Without ignore_merges a token that no merge makes is never used.
    tokens = vocabulary.keys() - added if model["ignore_merges"] else {*_BYTE_OF, *merged}
    try:
        ranks = {bytes(_BYTE_OF[character] for character in token): vocabulary[token] for token in tokens}
    except KeyError:  # a byte is no token, or a token is not written in the byte-level alphabet
        return None
    return ranks if all(bytes([byte]) in ranks for byte in range(256)) else None
