"""Run by test_hub_tokenizers.py in a process of its own: loads tokenizers from a hub and uses them.

Reads {"names": [...], "texts": [...]} from standard input; prints what each tokenizer made of the texts.
"""

import json
import pickle
import sys

import numpy as np

from sources.rows.tokenizer import load_tokenizer


def main() -> None:
    task = json.load(sys.stdin)
    answer = {}
    for name in task["names"]:
        tokenizer = load_tokenizer(name)
        ids = tokenizer.encode_batch(task["texts"])
        announced = tokenizer.use_fast_encoder(task["texts"])
        sent = pickle.loads(pickle.dumps(tokenizer))
        answer[name] = {
            "eos": tokenizer.decode([tokenizer.eos_id]),
            "pad": tokenizer.decode([tokenizer.pad_id]),
            "eos_in_texts": any(tokenizer.eos_id in text for text in ids),
            "below_vocab_size": all(text.max() < tokenizer.vocab_size for text in ids),
            "lengths": [len(text) for text in ids],
            "decoded": [tokenizer.decode(text) for text in ids],
            "announced": announced,
            "same_ids": all(map(np.array_equal, ids, sent.encode_batch(task["texts"]))),
            "sent_is_fast": sent.is_fast,
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
