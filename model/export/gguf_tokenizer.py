"""A byte-level BPE in a GGUF file: tokens, merges, and the name of the rule by which llama.cpp cuts a text into words.

llama.cpp knows such rules by name (`tokenizer.ggml.pre`), not by what they do, so only rules that were compared are in
PRE_TOKENIZERS. Special tokens are control tokens there: llama.cpp reads them in a text only when it is asked to.
"""

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from .errors import ExportError
from .tokenizer_files import end_of_text

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Pre-tokenizer of tokenizer.json -> llama.cpp's name of the same rule. "gpt-2" is the one that byte-level ones have
# built in: GPT-2's and those of the tokenizers that are trained here.
PRE_TOKENIZERS = [
    ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
]
# Of a BPE; llama.cpp's has none of these.
EXTRAS = ("dropout", "byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")


def add_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer, eos_token_id: int, vocab_size: int) -> None:
    """Write the tokenizer. Raises ExportError where llama.cpp would encode texts differently."""
    import gguf

    contents = json.loads(tokenizer.to_str())
    rule = _rule(contents)
    end_of_text(tokenizer, eos_token_id)
    ids = {**contents["model"]["vocab"], **{token["content"]: token["id"] for token in contents["added_tokens"]}}
    by_id = {id: token for token, id in ids.items()}
    kinds = {
        token["id"]: gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        for token in contents["added_tokens"]
    }
    kinds[eos_token_id] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([by_id.get(id, f"[PAD{id}]") for id in range(vocab_size)])
    writer.add_token_types(
        [kinds.get(id, gguf.TokenType.NORMAL if id in by_id else gguf.TokenType.UNUSED) for id in range(vocab_size)]
    )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in contents["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(eos_token_id)
    writer.add_eos_token_id(eos_token_id)
    writer.add_add_bos_token(True)  # as in every document of the training
    writer.add_add_eos_token(False)


def _rule(contents: dict[str, Any]) -> str:
    """llama.cpp's name of the rule by which this tokenizer cuts texts."""
    model, cutting = contents["model"], contents["pre_tokenizer"] or {}
    found = next((name for rule, name in PRE_TOKENIZERS if all(cutting.get(k) == v for k, v in rule.items())), None)
    plain = model["type"] == "BPE" and contents["normalizer"] is None and not any(map(model.get, EXTRAS))
    if found is None or not plain:
        raise ExportError(
            "llama.cpp would cut texts differently from this tokenizer, which is no byte-level BPE like GPT-2's; give "
            "a target without .gguf to export a folder of transformers."
        )
    return found
