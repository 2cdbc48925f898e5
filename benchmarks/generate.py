"""How fast text is written, beside transformers and CTranslate2 in the same run, with equal threads and weights.

    python -m benchmarks.generate [SNAPSHOT] [--threads 2] [--rounds 5] [--rows small,vocabulary,large,batch,...]

Without a snapshot the weights are random; speed does not depend on them. All models have the shape that all peers know
(GPT-2's: learned positions, LayerNorm, GELU); `shapes` adds another. The rounds of the methods take turns; medians are
told. CTranslate2 takes part where it is installed (pip install ctranslate2).

Rows: small (3 x 256, vocabulary 8,192), vocabulary (50,257), large (12 x 768), batch, sampling, start, int8, shapes,
gpu (small and large in bf16 on a GPU, where there is one). int8 needs a snapshot and --text FILE, a text that the model
was not trained on.
"""

import argparse
import importlib.util
import multiprocessing
import multiprocessing.process
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.device import machine
from engine.device.ranks import local_device
from model import ModelConfig, TransformerLM, load
from model.decoding.decoder import Precision, Weights
from model.decoding.generate import generate_tokens
from model.decoding.settings import GenerationSettings
from model.decoding.torch_decoder import TorchDecoder

SETTLING_SECONDS = 0.5  # until the threads of the last method sleep
EOS, PROMPT = 0, list(range(1, 17))
END = "<|endoftext|>"  # the peers' name of EOS
GPT = {"seq_length": 1024}
MODERN = {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu", "bias": False, **GPT}
SHAPES = {
    "small": {"num_layers": 3, "num_heads": 4, "hidden_size": 256},
    "vocabulary": {"num_layers": 3, "num_heads": 4, "hidden_size": 256},
    "large": {"num_layers": 12, "num_heads": 12, "hidden_size": 768},
}
VOCABULARY = {"small": 8192, "vocabulary": 50257, "large": 50257}
Method = Callable[[int], object]  # writes that many tokens
Maker = Callable[[], Method | None]  # None where a peer is not installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", nargs="?", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="small,vocabulary,large,batch,sampling,start,int8,shapes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{machine.describe(torch.device('cpu'))}, {processor()}, torch {torch.__version__}")
    for row in arguments.rows.split(","):
        if row in SHAPES:
            alone(row, arguments.rounds)
        elif row in ROWS:
            ROWS[row](arguments)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name} ({machine.bf16_instructions(torch.device('cpu')) or 'no'} bf16)"


def made(row: str, shape: dict = GPT) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(**SHAPES[row], **shape), VOCABULARY[row]).eval()


def ours(
    row: str, precision: Precision = "fp32", rows: int = 1, shape: dict = GPT, device: str = "cpu", **settings: object
) -> Method:
    """Greedy unless told otherwise, through the loop that `generate` uses, without text."""
    values = {"temperature": 0, "stop_at_eos": False, **settings}
    decoder = Weights(made(row, shape).to(device), precision).decoder(rows)

    def write(tokens: int) -> None:
        settings = GenerationSettings(max_new_tokens=tokens, **values)
        for _ in generate_tokens(decoder, [PROMPT] * rows, settings, EOS, [0] * rows, set()):
            pass

    return torch.inference_mode()(write)


def by_transformers(
    row: str, rows: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32, **settings: object
) -> Method:
    """The same weights in transformers' class, generate with its usual (dynamic) cache; it compiles a static one's step
    on a GPU by itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = made(row)
    config = model.config
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size, n_positions=config.seq_length, n_embd=config.hidden_size,
            n_layer=config.num_layers, n_head=config.num_heads, activation_function="gelu", bos_token_id=0,
            eos_token_id=None, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    weights = gpt2_weights(model)
    assert peer.load_state_dict(weights, strict=False).unexpected_keys == []
    peer.to(device, dtype)
    ids = torch.tensor([[EOS, *PROMPT]] * rows, device=device)
    values = {"do_sample": False, "attention_mask": torch.ones_like(ids), **settings}
    return lambda tokens: peer.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **values)


def gpt2_weights(model: TransformerLM) -> dict[str, Tensor]:
    """A state dict under transformers' names; its linear layers are transposed."""
    found = {"transformer.wte.weight": model.tokens.weight[: model.vocab_size]}
    assert model.positions is not None
    found["transformer.wpe.weight"] = model.positions.weight
    names = {
        "attention_norm": "ln_1", "attention.in_proj_": "attn.c_attn.", "attention.out_proj": "attn.c_proj",
        "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
    }  # fmt: skip
    for name, parameter in model.blocks.named_parameters():
        number, rest = name.split(".", 1)
        new = next(rest.replace(old, new) for old, new in names.items() if rest.startswith(old))
        found[f"transformer.h.{number}.{new}"] = parameter.t() if parameter.ndim == 2 else parameter
    for name, parameter in model.final_norm.named_parameters():
        found[f"transformer.ln_f.{name}"] = parameter
    found["lm_head.weight"] = found["transformer.wte.weight"]
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def by_ctranslate2(row: str, kind: str, folder: Path) -> Method | None:
    """CTranslate2's own converter and generator, on a folder that transformers wrote."""
    if importlib.util.find_spec("ctranslate2") is None:
        return None
    model, threads = made(row), torch.get_num_threads()
    import ctranslate2
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from sources.rows.tokenizer import train_bpe

    config, source = model.config, folder / "source"
    if not source.exists():
        shape = GPT2Config(
            vocab_size=model.vocab_size, n_positions=config.seq_length, n_embd=config.hidden_size,
            n_layer=config.num_layers, n_head=config.num_heads, activation_function="gelu", bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        peer = GPT2LMHeadModel(shape)
        peer.load_state_dict(gpt2_weights(model), strict=False)
        peer.save_pretrained(source)
        tokenizer = train_bpe(iter(["the quick brown fox " * 50]), 300).to_json()
        (folder / "tokenizer.json").write_text(tokenizer)
        fast = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), bos_token=END, eos_token=END, unk_token=END
        )
        fast.add_tokens([f"<{i}>" for i in range(len(fast), model.vocab_size)])
        fast.save_pretrained(source)
    target = folder / kind
    if not target.exists():
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(target), quantization=kind)
    generator = ctranslate2.Generator(str(target), compute_type=kind, intra_threads=threads)
    from transformers import AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(source).convert_ids_to_tokens([EOS, *PROMPT])
    return lambda tokens: generator.generate_batch(
        [prompt], max_length=tokens, min_length=tokens, sampling_topk=1, include_prompt_in_result=False, end_token=[]
    )


def compiled_step(row: str) -> Method:
    """The way of gpt-fast: the model's own step with a static cache, compiled by torch, without its compile time."""
    model = made(row)
    decoder = TorchDecoder(model, 1)
    step = torch.compile(lambda: model.logits(model.hidden_states(decoder._tokens, decoder.cache)[:, -1]).argmax(-1))

    @torch.inference_mode()
    def write(tokens: int) -> None:
        decoder.lengths[0] = 0
        token = int(decoder.read(0, [EOS, *PROMPT])[0].argmax())
        for position in range(len(PROMPT) + 1, len(PROMPT) + tokens):
            decoder._tokens.fill_(token)
            decoder.cache.positions.fill_(position)
            token = int(step())

    return write


def race(methods: Mapping[str, Maker], tokens: int, rounds: int, rows: int = 1) -> dict[str, float]:
    """Median tokens/s of each method over rounds that take turns, each in a process of its own: CTranslate2 leaves
    OpenMP in a state in which others of its process decode at a fifth of their speed."""
    context = multiprocessing.get_context("spawn")
    runners: dict[str, tuple[multiprocessing.process.BaseProcess, Connection]] = {}
    for name, make in methods.items():
        here, there = context.Pipe()
        process = context.Process(target=run, args=(there, make, torch.get_num_threads()), daemon=True)
        process.start()
        if here.recv():
            runners[name] = process, here
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 1):
        for name, (_, connection) in runners.items():
            time.sleep(SETTLING_SECONDS)
            connection.send(tokens)
            taken = connection.recv()
            if number:  # the first warms up
                seconds[name].append(taken)
    for process, connection in runners.values():
        connection.send(0)
        process.join()
    return {name: rows * tokens / statistics.median(times) for name, times in seconds.items()}


def run(connection: Connection, make: Maker, threads: int) -> None:
    """Write as many tokens as are asked for, until 0 are; send the seconds."""
    torch.set_num_threads(threads)
    method = make()
    connection.send(method is not None)
    while method is not None and (tokens := connection.recv()):
        method(max(2, tokens // 8))
        begin = time.perf_counter()
        method(tokens)
        connection.send(time.perf_counter() - begin)


def show(title: str, rates: dict[str, float], against: dict[str, str]) -> None:
    print(f"\n{title}")
    for name, rate in rates.items():
        print(f"  {name:<46} {rate:>10,.0f} tokens/s")
    first = next(iter(rates))
    for name, aim in against.items():
        if name in rates:
            print(f"  {first} / {name}: {rates[first] / rates[name]:.2f}{f' (aim: {aim})' if aim else ''}")


def reading(model: TransformerLM) -> float:
    """Tokens/s if a token took as long as one plain read of the weights that it needs."""
    numbers = sum(p.numel() for p in model.blocks.parameters()) + model.vocab_size * model.config.hidden_size
    weights = torch.ones(numbers)
    weights.sum()
    times = []
    for _ in range(21):
        begin = time.perf_counter()
        weights.sum()
        times.append(time.perf_counter() - begin)
    return 1 / statistics.median(times)


def alone(row: str, rounds: int) -> None:
    tokens = 24 if row == "large" else 200
    with tempfile.TemporaryDirectory() as folder:
        methods: dict[str, Maker] = {
            "ours, fp32": partial(ours, row),
            "transformers, dynamic cache": partial(by_transformers, row),
            "transformers, static cache": partial(by_transformers, row, cache_implementation="static"),
            "compiled step (gpt-fast's way)": partial(compiled_step, row),
            "CTranslate2, fp32": partial(by_ctranslate2, row, "float32", Path(folder)),
            "ours, int8": partial(ours, row, "int8"),
            "CTranslate2, int8": partial(by_ctranslate2, row, "int8", Path(folder)),
            "ours, bf16": partial(ours, row, "bf16"),
        }
        rates = race(methods, tokens, rounds)
    rates["reading the fp32 weights once a token"] = reading(made(row))
    shape = SHAPES[row]
    size = f"{shape['num_layers']} x {shape['hidden_size']}, vocabulary {VOCABULARY[row]:,}"
    aims = {
        "small": {"transformers, dynamic cache": "6", "CTranslate2, fp32": "1.2"},
        "vocabulary": {"reading the fp32 weights once a token": "0.85"},
        "large": {"reading the fp32 weights once a token": "0.90", "transformers, dynamic cache": "2"},
    }[row]
    show(f"{size}, random weights, batch 1, greedy, {torch.get_num_threads()} threads", rates, aims)


def batch(arguments: argparse.Namespace) -> None:
    rates = {}
    for rows in (32, 1):
        methods = {
            f"ours, {rows} rows": partial(ours, "small", rows=rows),
            f"transformers, {rows} rows": partial(by_transformers, "small", rows),
        }
        rates |= race(methods, 100, arguments.rounds, rows)
    show(
        "3 x 256, vocabulary 8,192, greedy, tokens/s over all rows",
        rates,
        {"ours, 1 rows": "10", "transformers, 32 rows": ""},
    )


def sampling(arguments: argparse.Namespace) -> None:
    methods = {
        "top_p 0.9": partial(ours, "small", temperature=1.0, top_p=0.9, seed=0),
        "greedy": partial(ours, "small"),
        "top_p 0.9, top_k 50, min_p 0.02, penalty 1.2, 4-grams": partial(
            ours, "small", temperature=1.0, top_p=0.9, top_k=50, min_p=0.02, repetition_penalty=1.2, no_repeat_ngram=4,
            seed=0,
        ),
    }  # fmt: skip
    show("sampling, 3 x 256, vocabulary 8,192", race(methods, 400, arguments.rounds), {"greedy": "0.85"})


def start(arguments: argparse.Namespace) -> None:
    """In processes of their own: what a first token takes."""
    path = arguments.snapshot
    if path is None:
        print("\nstart: needs a snapshot")
        return
    code = (
        "from time import perf_counter as now; a = now(); import torch; b = now(); import model; c = now(); "
        f"lm = model.load({str(path)!r}); d = now(); next(lm.stream('The', 4)); e = now(); "
        "print(b - a, c - b, d - c, e - d)"
    )
    runs = []
    for _ in range(arguments.rounds + 1):
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        runs.append([float(value) for value in output.split()])
    torch_, model_, load_, first = (statistics.median(values) for values in zip(*runs[1:], strict=True))
    print("\na first token, in new processes, median")
    print(f"  import torch {torch_:.2f} s, import model beside it {model_:.2f} s (aim: 0.4)")
    print(f"  load {load_:.3f} s, first text {first:.3f} s, both {load_ + first:.3f} s (aim: 0.3)")


def int8(arguments: argparse.Namespace) -> None:
    """Nats per token on a text that the model was not trained on, by the weights that write."""
    if arguments.snapshot is None or arguments.text is None:
        print("\nint8: needs a snapshot and --text")
        return
    lm, losses = load(arguments.snapshot, device="cpu"), {}
    ids = lm.encode(arguments.text.read_text(encoding="utf-8"))[:40_000]
    window = lm.model.config.seq_length
    for precision in ("fp32", "bf16", "int8"):
        decoder, total, count = Weights(lm.model, precision).decoder(1), 0.0, 0
        for first in range(0, len(ids) - window, window):
            row = torch.tensor([lm.eos_token_id, *ids[first : first + window]])
            decoder.lengths[0] = 0
            logits = decoder.read(0, row[:-1].tolist(), every=True)
            total += torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
            count += window
        losses[precision] = total / count
    print(f"\nheld-out loss of {arguments.snapshot} over {count:,} tokens, by the precision of the weights")
    for precision, loss in losses.items():
        print(f"  {precision:<6} {loss:.4f} nats a token, {loss - losses['fp32']:+.4f}")
    print("  (aim for int8: at most 0.01)")


def shapes(arguments: argparse.Namespace) -> None:
    """Other options of the trunk, and precisions."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "int8")
    methods = {f"modern trunk, {p}": partial(ours, "small", p, shape=MODERN) for p in precisions}
    show("3 x 256, vocabulary 8,192: rotary, RMSNorm, QK-norm, squared ReLU", race(methods, 200, arguments.rounds), {})


def gpu(arguments: argparse.Namespace) -> None:
    device = str(local_device())
    for row in ("small", "large"):
        there: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
        methods: dict[str, Maker] = {
            "ours, bf16": partial(ours, row, "bf16", device=device),
            "transformers, static cache and compile": partial(
                by_transformers, row, cache_implementation="static", **there
            ),
            "transformers, dynamic cache": partial(by_transformers, row, **there),
        }
        shape = SHAPES[row]
        size = f"{shape['num_layers']} x {shape['hidden_size']}, vocabulary {VOCABULARY[row]:,}"
        rates = race(methods, 200, arguments.rounds)
        show(f"{size}, bf16, batch 1, greedy, on {device}", rates, {"transformers, static cache and compile": "3"})


ROWS = {"batch": batch, "sampling": sampling, "start": start, "int8": int8, "shapes": shapes, "gpu": gpu}

if __name__ == "__main__":
    main()
