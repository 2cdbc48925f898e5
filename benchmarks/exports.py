"""Whether other programs compute from an export what the model computes.

    python -m benchmarks.exports SNAPSHOT [--tokens 1000] [--dtypes float32,q8_0]

transformers, and the file's own reading back, are part of this project's requirements; a row of CTranslate2, of
llama.cpp (`pip install llama-cpp-python`, built from source) or of lm-evaluation-harness (`pip install lm_eval`) is
left out where it is not installed. Texts are Python's documentation topics, cut to the model's window. Greedy text is
written from several prompts, until there are --tokens tokens.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from model import ExportError, LanguageModel, TransformerLM, from_transformers, load
from model.decoding.decoder import Weights
from model.decoding.generate import generate_tokens
from model.decoding.settings import GenerationSettings
from model.export.architecture import VOCABULARY, exported_tensors
from model.export.gguf_file import ARCHITECTURES
from model.snapshot import restore

PARAGRAPHS = [piece for name in sorted(topics) for piece in topics[name].split("\n\n") if len(piece) > 100]

TASK = """dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}]
"""
CHOICE = """output_type: multiple_choice
doc_to_text: begun
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
"""


@dataclass
class Written:
    """What the model computes of some texts, and writes after them."""

    lm: LanguageModel
    tokens: int  # to write, over all prompts

    @cached_property
    def greedy(self) -> list[tuple[list[int], list[int]]]:
        """Prompts, from the end-of-text token on, and the likeliest tokens after them; each fits the window."""
        found, missing = [], self.tokens
        for text in PARAGRAPHS:
            prompt = self.lm.encode(text[:30])
            count = min(missing, self.lm.model.config.seq_length - len(prompt) - 1)
            if count <= 0:
                break
            options = GenerationSettings(max_new_tokens=count, temperature=0, stop_at_eos=False)
            decoder, eos = Weights(self.lm.model, "fp32").decoder(1), self.lm.eos_token_id
            written = [token.id for token in generate_tokens(decoder, [prompt], options, eos, [0], set())]
            found.append(([self.lm.eos_token_id, *prompt], written))
            missing -= count
        return found

    @cached_property
    def rows(self) -> list[list[int]]:
        """Four windows of text."""
        ids = self.lm.encode("\n\n".join(PARAGRAPHS))
        length = self.lm.model.config.seq_length
        return [[self.lm.eos_token_id, *ids[at * length : (at + 1) * length - 1]] for at in range(4)]

    @torch.no_grad()
    def logits(self, row: list[int]) -> Tensor:
        return self.lm.model.logits(self.lm.model.hidden_states(torch.tensor([row])))[0]

    def difference(self, theirs: Callable[[list[int]], Tensor]) -> str:
        """The largest difference of logits, and the mean KL divergence of the next token in nats."""
        largest, divergences = 0.0, []
        for row in self.rows:
            ours, found = self.logits(row), theirs(row)
            largest = max(largest, (ours - found).abs().max().item())
            ours, found = ours.double().log_softmax(-1), found.double().log_softmax(-1)
            divergences.append((ours.exp() * (ours - found)).sum(-1).mean().item())
        return f"logits differ by at most {largest:.1e}, KL {sum(divergences) / len(divergences):.1e}"

    def agreement(self, write: Callable[[list[int], int], list[int]]) -> str:
        """How many of the greedy tokens another program writes too, before its text first differs."""
        equal = count = 0
        for prompt, ours in self.greedy:
            theirs = write(prompt, len(ours))
            differs = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if len({*pair}) > 1), None)
            equal += min(len(theirs), len(ours)) if differs is None else differs
            count += len(ours)
        return f"greedy text equal for {equal:,} of {count:,} tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--dtypes", default="float32,float16,q8_0")
    arguments = parser.parse_args()
    written = Written(load(arguments.snapshot, device="cpu"), arguments.tokens)
    print(f"{arguments.snapshot}: {written.lm.model.config}")
    with tempfile.TemporaryDirectory() as folder:
        for label, figures in table(written, Path(folder), arguments.dtypes.split(",")):
            print(f"{label:28} {figures}", flush=True)


def table(written: Written, folder: Path, dtypes: list[str]) -> Iterator[tuple[str, str]]:
    """Rows of a label and figures; exports are written into `folder`."""
    model = folder / "model"
    try:
        architecture = written.lm.export(model).architecture
    except ExportError as error:
        yield "transformers", str(error)
    else:
        yield f"transformers {architecture}", "; ".join(in_transformers(written, model))
        yield "round trip", round_trip(written.lm, from_transformers(model, device="cpu"))
        if installed("ctranslate2"):
            yield "CTranslate2", in_ctranslate2(written, model, folder / "ctranslate2")
        if installed("lm_eval"):
            yield "lm-evaluation-harness", "; ".join(in_harness(written.lm, model, folder / "harness"))
    for dtype in dtypes:
        path = folder / f"{dtype}.gguf"
        try:
            exported = written.lm.export(path, dtype=dtype)
        except ExportError as error:
            yield f"GGUF {dtype}", str(error)
            continue
        yield f"GGUF {exported.architecture} {dtype}", "; ".join(read_back(written, path))
        if installed("llama_cpp"):
            yield "  in llama.cpp", "; ".join(in_llama_cpp(written, path))


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@torch.no_grad()
def in_transformers(written: Written, folder: Path) -> Iterator[str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    theirs.generation_config.eos_token_id = None

    def write(prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        found = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        return found[0, len(prompt) :].tolist()

    yield written.difference(lambda row: theirs(torch.tensor([row])).logits[0])
    yield written.agreement(write)
    eos, lm = written.lm.eos_token_id, written.lm
    equal = sum(tokenizer(text).input_ids == [eos, *lm.encode(text)] for text in PARAGRAPHS)
    yield f"{equal:,} of {len(PARAGRAPHS):,} texts have the same ids"


def round_trip(lm: LanguageModel, back: LanguageModel) -> str:
    ours, theirs, size = lm.model.state_dict(), back.model.state_dict(), lm.model.vocab_size
    ours = {name: tensor for name, tensor in ours.items() if not name.startswith("latent.")}
    equal = ours.keys() == theirs.keys() and all(
        torch.equal(tensor[:size], theirs[name][:size]) if name in VOCABULARY else torch.equal(tensor, theirs[name])
        for name, tensor in ours.items()
    )
    same = lm.model.config == back.model.config and lm.tokenizer.to_str() == back.tokenizer.to_str()
    weights, rest = ("equal to the bit" if equal else "DIFFER"), ("equal" if same else "DIFFER")
    return f"weights {weights}; configuration and tokenizer {rest}"


def in_ctranslate2(written: Written, folder: Path, target: Path) -> str:
    import ctranslate2

    try:
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(target))
    except ValueError as error:  # an architecture that it does not know
        return str(error).split("\n")[0].split(" (supported")[0]
    generator = ctranslate2.Generator(str(target), compute_type="float32")
    names: list[Any] = [written.lm.tokenizer.id_to_token(id) for id in range(written.lm.model.vocab_size)]

    def write(prompt: list[int], count: int) -> list[int]:
        (result,) = generator.generate_batch(
            [[names[id] for id in prompt]], max_length=count, min_length=count, sampling_topk=1,
            include_prompt_in_result=False, end_token=[],
        )  # fmt: skip
        return result.sequences_ids[0]

    return written.agreement(write)


def read_back(written: Written, path: Path) -> Iterator[str]:
    """A model of the file's own tensors and a tokenizer of its own tokens, beside the model and its tokenizer."""
    reader, lm = GGUFReader(path), written.lm
    fields = {name: field.contents() for name, field in reader.fields.items()}
    (architecture,) = [row for row in ARCHITECTURES if row.name == fields["general.architecture"]]
    found = {one.name: torch.tensor(dequantize(one.data, one.tensor_type)) for one in reader.tensors}
    heads = lm.model.config.num_heads
    weights, equal = {}, 0
    expected = exported_tensors(lm.model.state_dict(), lm.model.vocab_size)
    for name, ours in expected.items():
        parts = [found[theirs] for theirs in architecture.their_names(name)]
        if architecture.interleaved and ".attention.in_proj" in name:  # neighbours become i and i + d / 2 again
            parts[:2] = [p.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2) for p in parts[:2]]
        weights[name] = torch.cat(parts)
        equal += torch.equal(weights[name], ours)
    yield f"{equal} of {len(expected)} tensors equal to the bit"
    copy = TransformerLM(lm.model.config, lm.model.vocab_size).eval()
    restore(copy, weights)
    with torch.no_grad():
        yield written.difference(lambda row: copy.logits(copy.hidden_states(torch.tensor([row])))[0])
    vocabulary = {token: id for id, token in enumerate(fields["tokenizer.ggml.tokens"])}
    tokenizer = Tokenizer(BPE(vocabulary, [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    same = sum(tokenizer.encode(text).ids == lm.encode(text) for text in PARAGRAPHS)
    yield f"{same:,} of {len(PARAGRAPHS):,} texts have the same ids"


def in_llama_cpp(written: Written, path: Path) -> Iterator[str]:
    import llama_cpp

    length = written.lm.model.config.seq_length
    # Keys and values in fp32, which are fp16 by default.
    theirs = llama_cpp.Llama(
        str(path), n_ctx=length, n_batch=length, logits_all=True, type_k=0, type_v=0, verbose=False
    )

    def logits(row: list[int]) -> Tensor:
        theirs.reset()
        theirs.eval(row)
        return torch.tensor(theirs.scores[: len(row)])

    def write(prompt: list[int], count: int) -> list[int]:
        theirs.reset()
        theirs.eval(prompt)
        found: list[int] = []
        while len(found) < count:
            found.append(int(theirs.scores[theirs.n_tokens - 1].argmax()))
            if len(found) < count:
                theirs.eval(found[-1:])
        return found

    yield written.difference(logits)
    yield written.agreement(write)
    eos, lm = written.lm.eos_token_id, written.lm
    same = sum(theirs.tokenize(text.encode(), add_bos=True) == [eos, *lm.encode(text)] for text in PARAGRAPHS)
    yield f"{same:,} of {len(PARAGRAPHS):,} texts have the same ids"


def in_harness(lm: LanguageModel, folder: Path, work: Path) -> Iterator[str]:
    """Its log-likelihoods beside those of `score`: of texts, and of two continuations of each, one of them right."""
    work.mkdir()
    fitting = [text for text in PARAGRAPHS if len(lm.encode(text)) < lm.model.config.seq_length // 2][:101]
    halves = [text.split(" ", len(text.split(" ")) // 2) for text in fitting]
    begun, ended = [" ".join(words[:-1]) for words in halves], [f" {words[-1]}" for words in halves]
    rows = [
        {"text": text, "begun": begin, "choices": [right, wrong]}
        for text, begin, right, wrong in zip(fitting, begun, ended, ended[1:], strict=False)
    ]
    (work / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    # The harness puts the end-of-text token before a whole text by itself, and so does the tokenizer, unless told.
    found = harness(folder, work, "texts", ROLLING, "add_bos_token=False")
    pairs = [(-lm.score(one["doc"]["text"]).token_nll.sum().item(), float(one["resps"][0][0])) for one in found]
    size = sum(len(row["text"].encode()) for row in rows) * math.log(2)
    ours, theirs = (-sum(numbers) / size for numbers in zip(*pairs, strict=True))
    apart = max(abs(ours - theirs) for ours, theirs in pairs)
    yield f"{len(pairs)} texts within {apart:.1e} nats, {theirs:.4f} bits per byte there and {ours:.4f} here"

    found = harness(folder, work, "choices", CHOICE, "dtype=float32")
    right, apart = [0, 0], 0.0
    for one in found:
        begin, choices = one["doc"]["begun"], one["doc"]["choices"]
        start = len(lm.encode(begin.rstrip()))  # spaces belong to what is chosen there
        scores = [-lm.score(begin + choice).token_nll[start:].sum().item() for choice in choices]
        theirs = [float(response[0][0]) for response in one["resps"]]
        apart = max([apart, *(abs(a - b) for a, b in zip(scores, theirs, strict=True))])
        right = [right[0] + (theirs[0] > theirs[1]), right[1] + (scores[0] > scores[1])]
    yield f"{len(found)} choices within {apart:.1e} nats, {right[0]} right there and {right[1]} here"


def harness(folder: Path, work: Path, name: str, task: str, arguments: str) -> list[dict[str, Any]]:
    """What lm-evaluation-harness found for each row of a task."""
    tasks = work / name
    tasks.mkdir()
    (tasks / "task.yaml").write_text(f"task: {name}\n{TASK}{task}".replace("DATA", str(work / "rows.jsonl")))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder},{arguments}"]
    command += ["--include_path", str(tasks), "--tasks", name, "--device", "cpu", "--batch_size", "1"]
    command += ["--output_path", str(tasks / "out"), "--log_samples"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "cache")}
    ended = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    assert ended.returncode == 0, ended.stderr
    (samples,) = tasks.glob("out/**/samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
