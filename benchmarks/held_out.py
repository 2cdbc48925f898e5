"""What keeps near-copies of the validation set out of training: how many are found, what else is lost, what it costs.

    python -m benchmarks.held_out [--corpus FOLDER ...] [--documents 4000] [--tokenizer gpt2]

The documents are the Python sources of this machine, or those of --corpus, folders in hub layout (column `text`), each
a set of its own. A validation set of --eval-tokens tokens (four characters each) is drawn of those that are held out,
and each of its documents is changed in twelve ways. `found` is the share of changed copies that are not trained on,
`lost` the share of unchanged training documents that are not. Of those, `alike` are the ones that share at least three
in ten of their runs of five words, or of a validation document's, with it: they are near-copies too. The rules:

    0.2.0       the hash that decided before: lower case, without ASCII white space
    hash        the hash of the folded text
    13 words    any 13 words in a row in common (GPT-3's rule)
    MinHash     at least 0.7 of the runs of five words in common, all computed, so better than 128 permutations could
    chunks      sources/rows/near_copies.py, with the hash before it, as the pipeline does

Speed is that of one core and one process, in its own CPU time; each share is of the time that encoding the same texts
takes in the same rounds, and would take at AIM tokens/s.
"""

import argparse
import hashlib
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import torch

from engine.device import machine
from sources.config import DataConfig
from sources.registry import open_sources
from sources.retries import Retries, read_on
from sources.rows.filters import HELD_OUT_SHARE, ngram_hashes, text_hash
from sources.rows.near_copies import NearCopies, condense, fold
from sources.rows.pipeline import split_text
from sources.rows.tokenizer import load_tokenizer

ONE_IN = round(1 / HELD_OUT_SHARE)
AIM = 4_000_000  # tokens/s
WORDS = ("altogether", "surely", "window", "therefore", "number", "seven")
PARAGRAPH = (
    "The committee met on the second day of the month and heard two reports, one of which had been sent to all members "
    "in advance; the other was read aloud. Questions were put to both speakers until the hall had to be cleared."
)
Rule = Callable[[str], bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="*", default=[], help="folders in hub layout, in place of the Python sources")
    parser.add_argument("--documents", type=int, default=4000, help="of each set, drawn at random")
    parser.add_argument("--eval-tokens", type=int, default=300_000)
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine.describe(torch.device('cpu'))}, one core used")
    for name in arguments.corpus or ["python"]:
        measure(name, arguments)


def measure(name: str, arguments: argparse.Namespace) -> None:
    generator = random.Random(arguments.seed)
    texts = documents(name, arguments.documents, generator)
    held, training = [], []
    for text in texts:
        (held if text_hash(text) % ONE_IN == 0 else training).append(text)
    known, room = [], 4 * arguments.eval_tokens
    for text in held:
        if len(text) <= min(room, arguments.eval_tokens):
            known.append(text)
            room -= len(text)
    characters = sum(map(len, known))
    print(
        f"\n{Path(name).name}: {len(texts):,} documents; the validation set has {len(known)} of {len(held)} that are "
        f"held out, {characters / 1e6:.2f} M characters"
    )
    rules, near_copies = make_rules(known)
    print(f"  {'':<22}" + "".join(f"{rule:>10}" for rule in rules))
    for change, changed in copies(known, training, generator).items():
        show(f"found: {change}", {rule: [says(text) for text in changed] for rule, says in rules.items()})
    sample = generator.sample(training, min(2000, len(training)))
    shared = overlap(known)
    alike = [shared(text) >= 0.3 for text in sample]
    lost = {rule: [says(text) for text in sample] for rule, says in rules.items()}
    show("lost of all", lost)
    show(
        "lost, not alike",
        {rule: [lost and not a for lost, a in zip(said, alike, strict=True)] for rule, said in lost.items()},
    )
    print(f"  {sum(alike) / len(sample):.2%} of the training documents are alike")
    speed(near_copies, training, arguments.tokenizer)


def show(title: str, said: dict[str, list[bool]]) -> None:
    print(f"  {title:<22}" + "".join(f"{sum(found) / len(found):>10.2%}" for found in said.values()))


# The texts


def documents(name: str, number: int, generator: random.Random) -> list[str]:
    """Different texts of a source, at most `number` of them."""
    spec = {"type": "hf", "dataset": str(Path(name).resolve())} if name != "python" else "python_packages"
    (source,) = open_sources(DataConfig(sources=[spec])).sources.values()
    texts = [
        text for shard in range(source.num_shards) for text, _ in read_on(source, shard, Retries(source.name, 0.0))
    ]
    different = list(
        {text_hash(text): text for text in texts if len(text.strip()) >= 50 and len(text) < 500_000}.values()
    )
    return generator.sample(different, min(number, len(different)))


def copies(known: list[str], training: list[str], generator: random.Random) -> dict[str, list[str]]:
    """Changed copies of each text, by what was changed."""
    others = [text for text in training if 3000 < len(text) < 20_000] or training
    changes: dict[str, Callable[[str], str]] = {
        "one word": lambda text: other_words(text, generator, 0),
        "one word in twenty": lambda text: other_words(text, generator, 1 / 20),
        "one word in ten": lambda text: other_words(text, generator, 1 / 10),
        "last tenth cut": lambda text: text[: len(text) * 9 // 10],
        "first tenth cut": lambda text: text[len(text) // 10 :],
        "second half cut": lambda text: text[: len(text) // 2],
        "curly quotes": lambda text: re.sub(r"\B'|'\B", "\u2019", re.sub('"', "\u201d", text)),
        "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
        "capitals": lambda text: text.upper(),
        "no punctuation": lambda text: re.sub(r"[^\w\s]", "", text),
        "a paragraph more": lambda text: inserted(text, generator),
        "in a larger text": lambda text: inserted(generator.choice(others), generator, text),
    }
    return {name: [change(text) for text in known] for name, change in changes.items()}


def other_words(text: str, generator: random.Random, share: float) -> str:
    pieces = re.split(r"(\s+)", text)
    places = [place for place in range(0, len(pieces), 2) if pieces[place]]
    for place in generator.sample(places, max(1, round(share * len(places)))):
        pieces[place] = generator.choice(WORDS)
    return "".join(pieces)


def inserted(text: str, generator: random.Random, paragraph: str = PARAGRAPH) -> str:
    lines = text.split("\n")
    at = generator.randrange(len(lines) + 1)
    return "\n".join([*lines[:at], paragraph, *lines[at:]])


# The rules


def make_rules(known: list[str]) -> tuple[dict[str, Rule], NearCopies]:
    begin = time.perf_counter()
    near_copies = NearCopies.of(known)
    took = time.perf_counter() - begin
    known_chunks = near_copies.owners, near_copies.long_chunks
    size = sum(sys.getsizeof(chunks) + sum(map(sys.getsizeof, chunks)) for chunks in known_chunks)
    print(
        f"  {len(near_copies.owners):,} chunks of {len(near_copies.sizes)} documents, {size / 2**20:.1f} MiB, "
        f"made in {took:.2f} s"
    )
    forbidden = frozenset(ngram for text in known for ngram in ngram_hashes(text))
    jaccard = overlap(known, of_both=True)
    rules: dict[str, Rule] = {
        "0.2.0": lambda text: old_hash(text) % ONE_IN == 0,
        "hash": lambda text: text_hash(text) % ONE_IN == 0,
        "13 words": lambda text: not forbidden.isdisjoint(ngram_hashes(text)),
        "MinHash": lambda text: jaccard(text) >= 0.7,
        "chunks": lambda text: text_hash(text) % ONE_IN == 0 or near_copies.recognize(condense(text)),
    }
    return rules, near_copies


def old_hash(text: str) -> int:
    letters = text.lower().encode("utf-8", "surrogatepass").translate(None, b" \t\n\r\v\f")
    return int.from_bytes(hashlib.blake2b(letters, digest_size=8).digest(), "little")


def runs_of_words(text: str, length: int = 5) -> set[int]:
    words = re.findall(r"\w+", fold(text))
    return {hash(tuple(words[start : start + length])) for start in range(max(1, len(words) - length + 1))}


def overlap(known: list[str], of_both: bool = False) -> Callable[[str], float]:
    """Returns what gives the largest share of runs of five words that a text shares with one of the known, of the
    shorter one's or of those of both together."""
    documents = [runs_of_words(text) for text in known]
    owners: dict[int, list[int]] = {}
    for number, runs in enumerate(documents):
        for run in runs:
            owners.setdefault(run, []).append(number)

    def share(text: str) -> float:
        own = runs_of_words(text)
        shared = Counter(number for run in own for number in owners.get(run, ()))
        together = (
            (count, len(own) + len(documents[n]) - count if of_both else min(len(own), len(documents[n])))
            for n, count in shared.items()
        )
        return max((count / of for count, of in together), default=0.0)

    return share


# Its price


def speed(near_copies: NearCopies, training: list[str], name: str, limit: int = 4_000_000) -> None:
    texts, size = [], 0
    for text in training:
        if size < limit:
            texts.append(text)
            size += len(text)
    tokenizer = load_tokenizer(name)
    parts = [part for text in texts for part in split_text(text)]
    announced = tokenizer.use_fast_encoder(parts[:200])
    work: dict[str, Callable[[], object]] = {
        f"encoding ({'tiktoken' if announced else 'tokenizers'})": lambda: [
            tokenizer.encode_batch(parts[first : first + 16]) for first in range(0, len(parts), 16)
        ],
        "hash of 0.2.0": lambda: [old_hash(text) for text in texts],
        "folding and hash": lambda: [text_hash(text) for text in texts],
        "near-copies": lambda: [near_copies.recognize(text) for text in condensed],
    }
    condensed = [condense(text) for text in texts]
    best = dict.fromkeys(work, float("inf"))
    for _ in range(3):
        for task, run in work.items():
            begin = time.process_time()  # of a shared machine, only what this process used
            run()
            best[task] = min(best[task], time.process_time() - begin)
    encoding = next(iter(best.values()))
    aim = sum(map(len, tokenizer.encode_batch(parts))) / AIM
    ascii_only = sum(text.isascii() for text in texts) / len(texts)
    print(f"  {len(texts):,} documents, {size / 1e6:.1f} M characters, {ascii_only:.0%} of them ASCII, best of three:")
    for task, seconds in best.items():
        shares = f"{seconds / encoding:>7.1%} of encoding {seconds / aim:>7.1%} at {AIM / 1e6:g} M tokens/s"
        print(f"    {task:<24}{len(texts) / seconds:>10,.0f} documents/s {shares}")


if __name__ == "__main__":
    main()
