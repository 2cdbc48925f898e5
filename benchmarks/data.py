"""What the data pipeline does a second, and the same work done by datasets, webdataset and litdata in the same run.

    python -m benchmarks.data [--tokenizer gpt2] [--corpus FOLDER ...] [--pdf FILE] [--rows encode,stream,...]

The text is the Python sources of this machine (its standard library and packages), written as parquet once; --corpus
adds folders in hub layout (column `text`). Everything but the last row runs on one core (RAYON_NUM_THREADS and torch's
threads are set to 1); rounds of the rivals take turns and medians are told, so a shared machine's noise meets all
alike. litdata takes part where it is installed (pip install litdata). packing, waits, mixing and counts measure no
time: for the same text they give the same figures on every machine.
"""

import argparse
import importlib.util
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"  # of one thread: silences the library's remark on forks

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from engine.device import machine
from model import ModelConfig
from shard_cache import ShardCache
from sources.config import DataConfig
from sources.held_out import sample_training_texts
from sources.loading.lanes import Lane
from sources.loading.loader import BatchShape, Loader, LoaderOptions, configure_pipeline, merge_states
from sources.loading.prefetch import Prefetcher
from sources.loading.state import new_state
from sources.readers.pdf.reader import extract_text
from sources.readers.pdf.sandbox import Sandbox
from sources.readers.python_packages import PythonPackagesSource
from sources.registry import open_sources
from sources.rows.filters import is_held_out
from sources.rows.packing import Packer
from sources.rows.pipeline import PipelineCallbacks, RowPipeline, split_text
from sources.rows.pipeline_config import BLOCK_ROWS, BLOCK_TOKENS
from sources.rows.producer import ProducerSetup
from sources.rows.tokenizer import TextTokenizer, load_tokenizer

ROWS = ("encode", "stream", "cached", "resume", "packing", "waits", "mixing", "counts", "pdf", "wait")
SHARDS, GROUP = 32, 200
SEQUENCE, BATCH = 256, 128  # the reference preset's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--corpus", nargs="*", default=[], help="folders in hub layout with a column text")
    parser.add_argument("--pdf", help="a text-heavy PDF")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pass-tokens", type=int, default=50_000_000)
    parser.add_argument("--wait-steps", type=int, default=2)
    arguments = parser.parse_args()
    wanted = arguments.rows.split(",")
    torch.set_num_threads(1)
    for noisy in ("pypdf", "transformers"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    print(f"{machine.describe(torch.device('cpu'))}, one core used, numpy {np.__version__}, pyarrow {pa.__version__}")
    tokenizer = load_tokenizer(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        python, size = write_parquet(Path(folder, "python"))
        print(f"Python sources as parquet: {size / 1e6:.0f} MB of text in {SHARDS} files")
        config = local(python)
        texts = list(sample_training_texts(open_sources(config).sources, config, 4_000_000))
        print(
            "tokenizer:",
            tokenizer.use_fast_encoder([part for text in texts for part in split_text(text)])
            or "the library's own encoder",
        )
        sets = {"Python": (config, texts)}
        for other in arguments.corpus:
            config = local(Path(other))
            sets[Path(other).name] = (
                config,
                list(sample_training_texts(open_sources(config).sources, config, 4_000_000)),
            )
        for row, show in (
            ("encode", lambda: encode(tokenizer, sets, arguments.rounds)),
            ("stream", lambda: stream(tokenizer, sets, arguments)),
            ("cached", lambda: cached(tokenizer, sets["Python"][0], Path(folder), arguments.rounds)),
            ("resume", lambda: resume(tokenizer, sets["Python"][0], arguments.pass_tokens)),
            ("packing", lambda: packing(tokenizer, sets)),
            ("waits", lambda: waits(tokenizer, sets)),
            ("mixing", lambda: mixing(tokenizer, sets)),
            ("counts", lambda: counts(Path(folder))),
            ("pdf", lambda: pdf(arguments.pdf, arguments.rounds)),
            ("wait", lambda: wait(tokenizer, sets["Python"][0], arguments)),
        ):
            if row in wanted:
                show()


# The text


def write_parquet(folder: Path) -> tuple[Path, int]:
    """The Python sources in hub layout; returns the folder and the text's size in bytes."""
    source = PythonPackagesSource(DataConfig(sources=("python_packages",)).sources[0])
    texts = [text for shard in range(source.num_shards) for text, _ in source.read(shard, None)]
    (folder / "data").mkdir(parents=True)
    for number in range(SHARDS):
        table = pa.table({"text": texts[number::SHARDS]})
        pq.write_table(table, folder / "data" / f"train-{number:05}-of-{SHARDS:05}.parquet", row_group_size=GROUP)
    return folder, sum(len(text.encode("utf-8", "ignore")) for text in texts)


def local(folder: Path) -> DataConfig:
    return DataConfig(sources=[{"type": "hf", "dataset": str(folder.resolve()), "name": folder.name}])


def table(title: str, rows: list[tuple[str, str]]) -> None:
    print(f"\n{title}")
    for name, figure in rows:
        print(f"  {name:<66} {figure}")


def medians(rivals: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Each rival's median rate; they take turns."""
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            rates[name].append(rival())
    return {name: statistics.median(values) for name, values in rates.items()}


def rate(tokens: Iterator[int], limit: float = 3.0) -> float:
    """Tokens a second of an iterator of token counts, over at most `limit` seconds."""
    begin, total = time.perf_counter(), 0
    for count in tokens:
        total += count
        if time.perf_counter() - begin > limit:
            break
    return total / (time.perf_counter() - begin)


def batches_of(texts: list[str]) -> list[list[str]]:
    """Parts of texts in lists of 64,000 characters, as a stream encodes them."""
    lists, characters = [[]], 0
    for part in (part for text in texts for part in split_text(text)):
        if characters > 64_000:
            lists.append([])
            characters = 0
        lists[-1].append(part)
        characters += len(part)
    return lists


# The rows


def encoders(tokenizer: TextTokenizer, texts: list[str]) -> dict[str, Callable[[], float]]:
    batches = batches_of(texts)
    library = tokenizer.tokenizer
    return {
        "ours": lambda: rate(sum(map(len, tokenizer.encode_batch(batch))) for batch in batches),
        "tokenizers, encode_batch_fast": lambda: rate(
            sum(len(e.ids) for e in library.encode_batch_fast(batch, add_special_tokens=False)) for batch in batches
        ),
        "tokenizers, encode_batch": lambda: rate(
            sum(len(e.ids) for e in library.encode_batch(batch, add_special_tokens=False)) for batch in batches
        ),
    }


def encode(tokenizer: TextTokenizer, sets: dict, rounds: int) -> None:
    for name, (_, texts) in sets.items():
        found = medians(encoders(tokenizer, texts), rounds)
        rows = [(rival, f"{value / 1e6:6.2f} M tokens/s") for rival, value in found.items()]
        table(f"Tokenising, {name} text, one core (aim: 4 M tokens/s)", rows)


def stream(tokenizer: TextTokenizer, sets: dict, arguments: argparse.Namespace) -> None:
    for name, (config, texts) in sets.items():
        opened = open_sources(config)
        start = new_state(1, True, 16, {"seq_length": SEQUENCE, "packing": config.packing})
        rows = configure_pipeline(opened, config, tokenizer, start)
        (source,) = opened.sources.values()
        chains = [RowPipeline(source, lane, rows, PipelineCallbacks()) for lane in range(16)]
        ours = (int(chain.next_block().block.lengths.sum()) for chain in itertools.cycle(chains))
        loader = make(config, tokenizer, num_workers=1)
        theirs = (batch["input_ids"].numel() for batch in datasets_batches(config, arguments.tokenizer))
        loader.next(), next(ours), next(theirs)  # opening is not what is measured
        found = medians(
            {
                "ours, encoding alone": encoders(tokenizer, texts)["ours"],
                "ours, to packed blocks (what a worker does)": lambda ours=ours: rate(ours),
                "ours, to batches, one worker process": lambda loader=loader: rate(b.num_tokens for b in loader),
                "datasets + DataLoader, tokenised and grouped": lambda theirs=theirs: rate(theirs),
            },
            arguments.rounds,
        )
        loader.close()
        alone = found["ours, encoding alone"]
        rows = [(rival, f"{value / 1e6:6.2f} M tokens/s, {value / alone:5.0%}") for rival, value in found.items()]
        table(f"Local parquet to batches of {BATCH} x {SEQUENCE}, {name} text (aim: 80% of encoding alone)", rows)


def make(config: DataConfig, tokenizer: TextTokenizer, steps: int = 1, state=None, **options) -> Loader:
    shape = BatchShape(BATCH, steps, SEQUENCE)
    return Loader(open_sources(config), config, tokenizer, shape, LoaderOptions(seed=1, **options), state)


def datasets_batches(config: DataConfig, name: str) -> Iterator[dict]:
    """Streaming, tokenising and grouping as the documentation of transformers' language modelling does it."""
    rows = datasets_pipeline(config, name)
    while True:
        yield from torch.utils.data.DataLoader(rows, batch_size=BATCH)


def datasets_pipeline(config: DataConfig, name: str):
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    files = sorted(str(path) for path in Path(config.sources[0].dataset, "data").glob("train*.parquet"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)

    def group(examples):
        line = list(itertools.chain.from_iterable([*ids, tokenizer.eos_token_id] for ids in examples["input_ids"]))
        end = len(line) // SEQUENCE * SEQUENCE
        ids = [line[start : start + SEQUENCE] for start in range(0, end, SEQUENCE)]
        return {"input_ids": ids, "labels": [list(row) for row in ids]}

    encoded = rows.map(
        lambda rows: {"input_ids": tokenizer(rows["text"])["input_ids"]}, batched=True, remove_columns=rows.column_names
    )
    return encoded.map(group, batched=True).with_format("torch")


def cached(tokenizer: TextTokenizer, config: DataConfig, folder: Path, rounds: int) -> None:
    cache_folder = folder / "cache"
    filling = make(config, tokenizer, cache=ShardCache(cache_folder, 10.0))
    tokens = 0
    while tokens < 12_000_000:
        tokens += filling.next().num_tokens
    filling.close()

    def ours() -> float:
        loader = make(config, tokenizer, cache=ShardCache(cache_folder, 10.0), steps=4)
        loader.next()
        # Blocks are asked for ahead: what is read here ends well before the cache does.
        steps = 8_000_000 // (4 * BATCH * SEQUENCE)
        found = rate(itertools.islice((batch.num_tokens for batch in loader), steps))
        loader.close()
        return found

    tars = sorted(str(path) for path in cache_folder.rglob("*.tar"))
    by_row = folder / "rows.tar"
    write_row_per_sample(tars, by_row)
    rivals = {
        "ours: verified, mixed, with states": ours,
        "webdataset, our tars, blocks of rows": lambda: rate(webdataset_blocks(tars)),
        "webdataset, one row a sample": lambda: rate(webdataset_rows(by_row)),
    }
    if importlib.util.find_spec("litdata"):
        write_litdata(tars, folder / "lit")
        rivals["litdata, TokensLoader"] = lambda: rate(litdata_rows(folder / "lit"))
    found = medians(rivals, rounds)
    rows = [(rival, f"{value / 1e6:6.1f} M tokens/s") for rival, value in found.items()]
    table(f"Cached rows to int64 batches of {BATCH} x {SEQUENCE}, one process (aim: 20 M tokens/s)", rows)


def blocks(tars: list[str]) -> Iterator[np.ndarray]:
    import webdataset

    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
        yield sample["ids.npy"]


def webdataset_blocks(tars: list[str]) -> Iterator[int]:
    for ids in blocks(tars):
        for start in range(0, len(ids) - BATCH + 1, BATCH):
            yield torch.from_numpy(ids[start : start + BATCH].astype(np.int64)).numel()


def write_row_per_sample(tars: list[str], path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(path)) as writer:
        for number, row in enumerate(itertools.islice((row for ids in blocks(tars) for row in ids), 20_000)):
            writer.write({"__key__": f"{number:08}", "npy": row.astype(np.int64)})


def webdataset_rows(path: Path) -> Iterator[int]:
    import webdataset

    dataset = webdataset.WebDataset(str(path), shardshuffle=False).decode().to_tuple("npy").batched(BATCH)
    for (batch,) in dataset:
        yield torch.from_numpy(np.asarray(batch)).numel()


def write_litdata(tars: list[str], folder: Path) -> None:
    from litdata.streaming.cache import Cache
    from litdata.streaming.item_loader import TokensLoader

    cache = Cache(str(folder), chunk_bytes="16MB", item_loader=TokensLoader(SEQUENCE))
    for number, ids in enumerate(blocks(tars)):
        cache[number] = torch.from_numpy(ids.astype(np.int64).flatten())
    cache.done()
    cache.merge()


def litdata_rows(folder: Path) -> Iterator[int]:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(SEQUENCE), shuffle=False)
    for batch in StreamingDataLoader(dataset, batch_size=BATCH):
        yield batch.numel()


def resume(tokenizer: TextTokenizer, config: DataConfig, pass_tokens: int) -> None:
    marks = {0.01: None, 0.5: None, 0.99: None}
    process, memory, tokens = psutil.Process(), {}, 0
    loader = make(config, tokenizer)
    points = [1_000_000, *(int(pass_tokens * share) for share in (0.1, 0.25, 0.5, 0.75, 1.0))]
    while tokens < pass_tokens:
        batch = loader.next()
        tokens += batch.num_tokens
        for share in marks:
            if marks[share] is None and tokens >= share * pass_tokens:
                marks[share] = json.dumps(merge_states([batch.state]))
        while points and tokens >= points[0]:
            memory[points.pop(0)] = process.memory_info().rss / 2**20
    loader.close()
    rows = []
    for share, text in marks.items():
        begin = time.perf_counter()
        loader = make(config, tokenizer, state=json.loads(text))
        loader.next()
        took = time.perf_counter() - begin
        loader.close()
        rows.append((f"ours, after {share:.0%}", f"{took:6.2f} s to the first batch, state {len(text) / 2**20:.2f} MB"))
    table(f"Resuming in a pass of {pass_tokens / 1e6:.0f} M tokens (aim: under 5 s, flat)", rows)
    rows = [(f"after {at / 1e6:5.1f} M tokens", f"{size:6.0f} MB") for at, size in memory.items()]
    table("Resident memory of the process over that pass (aim: flat after the first million)", rows)


def packing(tokenizer: TextTokenizer, sets: dict) -> None:
    rows = []
    for name, (config, _) in sets.items():
        for seq_length in (256, 1024):
            opened = open_sources(config)
            start = new_state(1, True, 16, {"seq_length": seq_length, "packing": config.packing})
            row_config = configure_pipeline(opened, config, tokenizer, start)
            (source,) = opened.sources.values()
            used = places = split = documents = 0
            for lane in range(0, 16, 4):
                chain = RowPipeline(source, lane, row_config, PipelineCallbacks())
                for _ in range(6):
                    result = chain.next_block()
                    block = result.block
                    used += int(block.lengths.sum())
                    places += block.ids.size
                    begins = block.pieces[:, 2] == tokenizer.eos_id
                    documents += int(begins.sum())
                    split += int((~begins).sum())
                    if result.after["pass"]:
                        break
            rows.append(
                (
                    f"{name}, rows of {seq_length}",
                    f"{used / places:7.2%}  ({split / max(documents, 1):.2f} cuts a document)",
                )
            )
    table("Positions that hold a label, best_fit (aim: 99.5%)", rows)


def waits(tokenizer: TextTokenizer, sets: dict) -> None:
    """How long the packer keeps documents, of lengths that fit badly, well, hardly ever or always."""
    draw = np.random.default_rng(0)
    lengths = {
        "60 to 160 tokens, rows of 256": (256, lambda: draw.integers(60, 161)),
        "lognormal (median 400), rows of 1024": (1024, lambda: 10 + draw.lognormal(np.log(400), 1.0)),
        "lognormal (median 20,000), rows of 256": (256, lambda: 10 + draw.lognormal(np.log(20_000), 1.0)),
        "5 to 40 tokens, rows of 2048": (2048, lambda: draw.integers(5, 41)),
    }
    for name, (_, texts) in sets.items():
        real = itertools.cycle([len(ids) for ids in tokenizer.encode_batch(texts)])
        lengths[f"{name}, rows of 256"] = 256, real.__next__
    rows = []
    for name, (seq_length, draw_length) in lengths.items():
        waited, used = waited_blocks(seq_length, draw_length, number=200)
        rows.append((name, f"{max(waited):3d} blocks, {np.mean(waited):5.2f} on average, {used:7.2%} used"))
    table(
        "Blocks packed without a document after all of it was there, best_fit (aim: 2; 3 where documents fill rows)",
        rows,
    )


def waited_blocks(seq_length: int, draw_length: Callable[[], float], number: int) -> tuple[list[int], float]:
    """Each document's wait in the first `number` blocks, and the share of positions used; its number is all its ids."""
    block_rows = max(16, min(BLOCK_ROWS, BLOCK_TOKENS // seq_length))
    packer, made, used = Packer(seq_length, 0, np.uint32), 0, 0
    left: dict[int, int] = {}  # ids that are in no block yet
    complete: dict[int, int] = {}  # blocks made before all of a document was there
    waited: list[int] = []
    for document in itertools.count(1):
        length = left[document] = int(draw_length())
        for start in range(0, length, 4000):  # in parts, as a stream does
            end = min(start + 4000, length)
            packer.add(np.full(end - start, document, dtype=np.uint32), finished=end == length)
            if end == length:
                complete[document] = made
            while packer.has_block(block_rows):
                block = packer.block(block_rows, None)
                used += int(block.lengths.sum())
                for packed, count in zip(*np.unique(block.ids[block.ids > 0], return_counts=True), strict=True):
                    left[int(packed)] -= int(count)
                    if not left[int(packed)] and int(packed) in complete:
                        waited.append(made - complete[int(packed)])
                        del left[int(packed)]
                made += 1
        if made >= number:
            waited += [made - 1 - complete[packed] for packed in left if packed in complete]
            return waited, used / (made * block_rows * seq_length)
    raise AssertionError


def mixing(tokenizer: TextTokenizer, sets: dict) -> None:
    sources = [config.sources[0].model_dump(exclude_none=True) for config, _ in sets.values()]
    weights = {source["name"]: 1.0 + 2.0 * number for number, source in enumerate(sources)}
    rows = []
    for packing in ("best_fit", "pad"):
        config = DataConfig(sources=sources, mix_strategy="weighted", source_weights=weights, packing=packing)
        loader, tokens = make(config, tokenizer), 0
        while tokens < 10_000_000:
            batch = loader.next()
            tokens += batch.num_tokens
        loader.close()
        found = merge_states([batch.state])["tokens_per_source"]
        errors = [abs(found[name] / sum(found.values()) - w / sum(weights.values())) for name, w in weights.items()]
        rows.append((f"{packing}, weights {':'.join(f'{w:g}' for w in weights.values())}", f"{max(errors):.4%}"))
    table("Largest error of a source's share after 10 M tokens (aim: 0.1 percentage point)", rows)


class NumberTokenizer:
    """Gives every word of a text the number that the text begins with, so that rows show their documents."""

    eos_id, vocab_size = 0, 2**20

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.full(text.count(" ") + 1, int(text[: text.index(" ")]), dtype=np.uint32) for text in texts]


def counts(folder: Path) -> None:
    rows = []
    for documents, files, epochs in ((100, 1, 10), (1_000, 1, 10), (20_000, 1, 3), (100_000, 24, 3)):
        corpus = folder / f"counts-{documents}-{files}"
        tokens = write_numbered(corpus, documents, files)
        config = DataConfig(sources=[{"type": "files", "path": str(corpus), "name": "numbered"}], deduplicate=False)
        found = met(config, documents, round(epochs * tokens / SEQUENCE / 16))
        few, median, many = np.quantile(found, [0.0, 0.5, 1.0]).astype(int)
        near = np.mean(np.abs(found - epochs) <= 1)
        figure = f"{few:2d} to {many:2d} times, median {median}, {near:6.1%} within one"
        rows.append((f"{documents:,} documents in {files} files, after {epochs} epochs of tokens", figure))
    table("How often each document came, lengths lognormal (median 60 words), 16 lanes (aim: to within one)", rows)


def write_numbered(folder: Path, documents: int, files: int) -> int:
    """Numbered documents, spread over files; returns the tokens of those that are not held out."""
    folder.mkdir()
    draw, lines, tokens = np.random.default_rng(1), [[] for _ in range(files)], 0
    for number in range(1, documents + 1):
        words = min(3000, int(20 + draw.lognormal(np.log(60), 1.0)))  # below what is encoded in parts
        text = f"{number} " + "word " * words + "end"
        lines[number % files].append(json.dumps({"text": text}))
        tokens += 0 if is_held_out(text) else text.count(" ") + 2
    for file, written in enumerate(lines):
        (folder / f"{file:02}.jsonl").write_text("\n".join(written))
    return tokens


def met(config: DataConfig, documents: int, rows_of_lane: int) -> np.ndarray:
    """How often each document that is not held out begins in the first rows of 16 lanes."""
    opened = open_sources(config)
    start = new_state(1, True, 16, {"seq_length": SEQUENCE, "packing": config.packing})
    pipeline = configure_pipeline(opened, config, NumberTokenizer(), start)
    prefetcher = Prefetcher(ProducerSetup(opened.sources, pipeline, {}), 0)
    lanes = [Lane(number, ["numbered"], {"numbered": 1.0}, SEQUENCE, prefetcher) for number in range(16)]
    found, left = np.zeros(documents + 1, dtype=np.int64), rows_of_lane
    while left:
        rows = min(64, left)
        for lane in lanes:
            for span in lane.take(list(range(rows))):
                block, last = span.block, span.first + len(span.places)
                row, column, before = block.pieces[block.offsets[span.first] : block.offsets[last]].T
                np.add.at(found, block.ids[row, column][before == NumberTokenizer.eos_id], 1)
        left -= rows
    prefetcher.close()
    texts = (
        text
        for source in opened.sources.values()
        for shard in range(source.num_shards)
        for text, _ in source.read(shard, None)
    )
    return found[[int(text.split(" ", 1)[0]) for text in texts if not is_held_out(text)]]


def pdf(path: str | None, rounds: int) -> None:
    if path is None:
        return print("\nPDF: no --pdf given")

    import pypdf
    import pypdfium2

    file = Path(path)
    pages = len(pypdfium2.PdfDocument(file))

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            work()
            return pages / (time.perf_counter() - begin)

        return run

    def by_pdfium() -> None:
        with pypdfium2.PdfDocument(file) as document:
            for page in document:
                page.get_textpage().get_text_bounded()

    def alone() -> None:
        with closing(Sandbox()) as sandbox:
            extract_text(file, sandbox)

    with closing(Sandbox()) as sandbox:
        extract_text(file, sandbox)
        found = medians(
            {
                "ours: sandboxed, paragraphs repaired": timed(lambda: extract_text(file, sandbox)),
                "ours, the sandbox's start included": timed(alone),
                "pypdfium2, plain text, this process": timed(by_pdfium),
                "pypdf, plain text, this process": timed(
                    lambda: [p.extract_text() for p in pypdf.PdfReader(file).pages]
                ),
            },
            rounds,
        )
    rows = [(rival, f"{value:6.0f} pages/s") for rival, value in found.items()]
    table(f"PDF of {pages} pages (aim: 500 pages/s per core)", rows)


def wait(tokenizer: TextTokenizer, config: DataConfig, arguments: argparse.Namespace) -> None:
    """A real run of the reference preset's model and batch."""
    from engine import load_preset, train
    from engine.events import read

    torch.set_num_threads(os.cpu_count())
    preset = load_preset("configs/03_reference.json")
    data = config.model_copy(update={"tokenizer": arguments.tokenizer})
    small = preset.train.model_copy(update={"eval_tokens": 4000, "log_interval_seconds": 1e-9})
    preset = preset.model_copy(update={"data": data, "train": small})
    shape: ModelConfig = preset.model
    step = small.per_gpu_batch_size * small.accumulation_steps * shape.seq_length
    with tempfile.TemporaryDirectory() as folder:
        train(preset, token_budget=arguments.wait_steps * step - step // 2, checkpoint_dir=folder)
        steps = [event for event in read(Path(folder)) if event["event"] == "step"]
    rows = [
        (f"step {event['step']}, {event['tokens_per_second']:.0f} tokens/s", f"{event['data_wait']:.2%}")
        for event in steps
    ]
    table("Share of a step's time spent waiting for data, reference preset, all cores (aim: under 1%)", rows)


if __name__ == "__main__":
    main()
