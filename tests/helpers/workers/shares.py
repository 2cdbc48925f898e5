"""Run on several hosts: measures what a rank keeps of the weights, gradients and moments.

python shares.py STAGE OFFLOAD

After a whole step, and the forward and backward pass of a second one, every rank writes the bytes of its tensors by
kind to shares-RANK.json in the folder it works in.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch

from engine.config import TrainConfig
from engine.config.footprint import Footprint
from engine.device import deepspeed_engine
from engine.device.ranks import join, leave
from model.config import ModelConfig
from model.transformer import TransformerLM
from sources.loading.shape import BatchShape

SHAPE = ModelConfig(hidden_size=256, num_layers=4, num_heads=4, seq_length=16, positions="rotary", bias=False)
VOCABULARY = 4096


def storages(tensors) -> dict[int, int]:
    """Bytes by address, of each storage once."""
    found = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta and tensor.is_floating_point():
            storage = tensor.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
    return found


def main() -> None:
    stage, offload = int(sys.argv[1]), sys.argv[2] == "true"
    torch.set_num_threads(1)
    ranks = join()
    torch.manual_seed(0)
    model = TransformerLM(SHAPE, VOCABULARY)
    parameters = model.num_parameters()
    train = TrainConfig(zero_stage=stage, offload_optimizer=offload)
    shape = BatchShape(1, 1, SHAPE.seq_length, ranks.rank, ranks.world_size)
    engine = deepspeed_engine.initialize(model, train, shape, ranks, bf16=False)
    ids = torch.zeros(1, SHAPE.seq_length, dtype=torch.int64)
    for number in range(2):
        engine.backward(engine(ids, ids).loss_sum)
        gradients = deepspeed_engine.Gradients.accumulated(engine)
        if number:
            break
        deepspeed_engine.step(engine, gradients, gradients.squared_norms(ranks.device), 1.0, ranks)
    gc.collect()
    optimizer = engine.basic_optimizer
    stepped = storages(p for group in optimizer.param_groups for p in group["params"])
    moments = storages(value for state in optimizer.state.values() for key, value in state.items() if key != "step")
    # At stages 1 and 2 the optimizer's own part; other ranks' gradients are views of the same buffers until the step.
    own = {id(one): one.nbytes for one in gradients.trunk}
    grads = own if stage in (1, 2) else storages(gradients.trunk)
    undivided = storages(p.grad for p in engine.module.parameters())
    weights = storages(engine.module.parameters())
    if stage == 3:
        weights = storages(p.ds_tensor for p in engine.module.parameters())
    everything = storages(one for one in gc.get_objects() if isinstance(one, torch.Tensor))
    named = weights | stepped | grads | moments | undivided
    answer = {
        "parameters": parameters,
        "weights": sum(weights.values()),
        "copy": sum(size for at, size in stepped.items() if at not in weights),
        "gradients": sum(grads.values()),
        "undivided": sum(size for at, size in undivided.items() if at not in grads),
        "moments": sum(moments.values()),
        "other": sum(size for at, size in everything.items() if at not in named),
        "predicted": Footprint(SHAPE, parameters, 1, ranks.world_size, offload).state_bytes(stage),
    }
    (Path(os.getcwd()) / f"shares-{ranks.rank}.json").write_text(json.dumps(answer))
    leave()


if __name__ == "__main__":
    main()
