"""DeepSpeed: the engine over a model, one optimizer step, and the engine's state as plain tensors.

The only file that imports DeepSpeed. Weights stay fp32 and `torch_autocast` does the bf16 arithmetic, so a snapshot is
fp32 as it stands and all ZeRO stages share one precision path. State is read and written in full, by parameter name, so
that any stage and world size can continue what another one saved.
"""

import contextlib
import functools
import logging
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import torch

# DeepSpeed looks for an accelerator when it is imported, and warns where it finds only a CPU.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups as process_groups
from deepspeed.utils import logger
from torch import nn

from engine.config import TrainConfig
from engine.config.deepspeed import engine_config
from engine.device import machine
from engine.device.expert_parallel import Callback, is_spread, places, read_tokens, without_experts
from engine.device.ranks import TIMEOUT, Ranks
from engine.optim.muon import Fragment, MuonAdamW
from engine.optim.optimizers import make_optimizer
from engine.optim.schedule import Hyperparameters
from model.experts import Experts, Routing, sparse_layers
from model.loss import matmul_dtype
from model.transformer import TransformerLM
from sources.loading.shape import BatchShape

Engine: TypeAlias = Any  # deepspeed.DeepSpeedEngine, which sets its attributes at run time


def initialize(model: TransformerLM, train: TrainConfig, shape: BatchShape, ranks: Ranks, bf16: bool) -> Engine:
    """Return the engine over `model`, which already holds the weights to start from. All ranks must call it."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    machine.keep_freed_memory(ranks.device)
    logger.addFilter(_is_relevant)
    # On a CPU DeepSpeed would compile a shared-memory operator here, and raise without a compiler; gloo needs none.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = dist.get_backend()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=TIMEOUT, verbose=False)
    # DeepSpeed moves the model too, but only after it has made flat copies of the parameters where they were.
    model.to(ranks.device)
    _spread_experts(model, train.expert_parallel_size)
    optimizer = make_optimizer(model, train, bf16)
    optimizer.param_groups = [part for group in optimizer.param_groups for part in without_experts(group)]
    config = engine_config(train, shape, bf16, on_gpu=ranks.device.type == "cuda")
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    if ranks.world_size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False
    if isinstance(optimizer, MuonAdamW) and engine.zero_optimization_stage():
        optimizer.fragments, optimizer.sum_over_ranks = {}, dist.all_reduce
        for name, flat, fragment in fragments(engine):
            if name in optimizer.matrices:
                number, *sizes = optimizer.matrices[name]
                parts = math.prod(fragment.shape) // (number * math.prod(sizes))  # of a block's experts, here one
                of_matrices = fragment._replace(shape=(number * parts, *sizes))
                if parts > 1 and not fragment.shared:  # nobody else has these experts
                    of_matrices = fragment._replace(shape=(number, *sizes), start=0)
                optimizer.fragments.setdefault(flat, []).append(of_matrices)
    return engine


class ParallelExperts(MoE):
    """The experts of one block, spread over `size` ranks by DeepSpeed's MoE layer, which sends tokens to the rank of
    their expert and their results back. Routing and weights are the model's own. Every expert has room for as many
    tokens as the fullest one on any rank reads, so that none is dropped."""

    def __init__(self, experts: Experts, size: int):
        number, _, width = experts.up.shape
        with torch.random.fork_rng():  # its gate, which is not used, draws weights
            super().__init__(width, nn.Identity(), num_experts=number, ep_size=size, drop_tokens=False)
        self.deepspeed_moe.gate, self.deepspeed_moe.experts = Callback(self._route), Callback(self._read)
        self.kind = experts.kind
        self._routing: Routing | None = None  # of the tokens that are on their way
        local, first = self.num_local_experts, dist.get_rank() % size * self.num_local_experts
        for name, weight in experts.named_parameters():
            own: Any = nn.Parameter(weight.detach()[first : first + local].clone())
            own.allreduce, own.group_name = False, self.expert_group_name  # how DeepSpeed knows experts
            self.register_parameter(name, own)

    @torch.compiler.disable
    def forward(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:  # type: ignore[override]
        """As Experts.forward, on all ranks at once."""
        self._routing = routing
        mixed = self.deepspeed_moe(x.to(matmul_dtype(x)), None)
        self._routing = None
        return mixed

    def _route(self, *_: Any) -> tuple[Any, ...]:
        """What DeepSpeed's gate returns: no loss, the room of each expert, their number, and of each token's choices
        (K, N) the expert, the place among its tokens and the weight; no counts."""
        routing = self._routing
        assert routing is not None
        room = routing.load.max()
        dist.all_reduce(room, op=dist.ReduceOp.MAX, group=self.deepspeed_moe.ep_group)
        return 0.0, room, self.num_experts, *places(routing), None

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        return read_tokens(tokens, self.get_parameter("up"), self.get_parameter("down"), self.kind)


def _spread_experts(model: TransformerLM, size: int) -> None:
    """Spread each block's experts over every `size` ranks in a row."""
    if size == 1:
        return
    process_groups._create_expert_and_data_parallel(size)  # which the layers would make, and print that they do
    for layer in sparse_layers(model.blocks):
        layer.experts = cast(Experts, ParallelExperts(layer.experts, size))


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop two messages: skipped steps are logged by the run itself, with their reason (DeepSpeed would call a spike an
    overflow), and DeepSpeed warns of every optimizer that is not its own."""
    message = record.getMessage()
    return "OVERFLOW! Skipping step" not in message and "untested optimizer" not in message


@contextlib.contextmanager
def warmup_step(engine: Engine, micro_batches: int) -> Iterator[None]:
    """Make the one step in the block change nothing: `micro_batches` micro-batches at a learning rate of 0, after which
    the moments are removed. Only for an engine whose optimizer has no state yet."""
    set_learning_rate(engine, 0.0)
    engine.micro_steps = engine.gradient_accumulation_steps() - micro_batches
    yield
    engine.micro_steps = 0
    engine.basic_optimizer.state.clear()


def set_learning_rate(engine: Engine, rate: float) -> None:
    """Set the learning rate of the trunk's matrices; the others' are their factors times it."""
    set_hyperparameters(engine, Hyperparameters(rate))


def set_hyperparameters(engine: Engine, values: Hyperparameters) -> None:
    """Set what the next step is made with."""
    for group in engine.optimizer.param_groups:
        group["lr"] = values.learning_rate * group["rate_factor"]
        if group.get("layer_factors") and not values.fits_layers:
            group["lr"] = 0.0
        group["weight_decay"] = group["full_decay"] * values.decay_share
        if values.momentum is not None:
            group["momentum"] = values.momentum
        if values.beta2 is not None:
            group["betas"] = (group["betas"][0], values.beta2)


def set_accumulation_steps(engine: Engine, steps: int) -> None:
    """Set the number of micro-batches of the next steps; between two steps only."""
    if steps != engine.gradient_accumulation_steps():
        engine.set_train_batch_size(engine.train_micro_batch_size_per_gpu() * steps * engine.dp_world_size)
        engine.micro_steps = 0


def learning_rate(engine: Engine) -> float:
    """Return the trunk's learning rate of the latest step."""
    return engine.optimizer.param_groups[0]["lr"]


class Gradients(NamedTuple):
    """This rank's accumulated gradients (at stages 1 to 3 its partitions of them), as the optimizer will read them."""

    trunk: list[torch.Tensor]
    core: list[torch.Tensor]  # of the lookahead core

    @classmethod
    def accumulated(cls, engine: Engine) -> "Gradients":
        """Return them by parameter group; a partition may be padded with zeros."""
        optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
        gradients = cls([], [])
        if stage == 0:
            for group in optimizer.param_groups:
                gradients[group["core"]].extend(p.grad for p in group["params"] if p.grad is not None)
            return gradients
        if engine.zero_cpu_offload():
            optimizer._wait_for_offload_copies()
            gradients.trunk.extend(flat.grad for flat in optimizer.single_partition_of_fp32_groups)
            return gradients
        for number, partitions in optimizer.averaged_gradients.items():
            group = optimizer.param_groups[optimizer.sub_group_to_group_id[number] if stage == 3 else number]
            gradients[group["core"]].extend(partitions)
        return gradients

    def squared_norms(self, device: torch.device) -> torch.Tensor:
        """Return (2,) fp64 on `device`, without synchronizing with it."""
        none = torch.zeros((), device=device)
        norms = [nn.utils.get_total_norm(part).to(device) if part else none for part in self]
        return torch.stack(norms).double().square()


def step(engine: Engine, gradients: Gradients, squares: torch.Tensor, clip: float, ranks: Ranks) -> tuple[float, float]:
    """Clip and apply the accumulated gradients; `squares` is their `squared_norms()` on the CPU.

    The lookahead core's gradients are clipped separately, so that a detached core leaves the trunk as it would be
    without one; for the same reason they count as zeros where they alone are not finite. Where the trunk's are not
    finite, the step is skipped on all ranks: weights, moments and step count stay, the gradients are dropped.

    Returns the norms of the trunk's and the core's gradients over all ranks, before clipping; NaN where they are not
    finite, 0 without a core.
    """
    # At stage 0 every rank has all gradients, otherwise a partition of them.
    sums = squares if engine.zero_optimization_stage() == 0 else ranks.sum_tensor(squares)
    trunk, core = (norm if math.isfinite(norm) else math.nan for norm in sums.sqrt().tolist())
    if math.isnan(trunk):
        discard(engine)
        return trunk, core
    if math.isnan(core) and gradients.core:
        torch._foreach_zero_(gradients.core)
    for part, norm in zip(gradients, (trunk, core), strict=True):
        if norm > clip:
            torch._foreach_mul_(part, clip / norm)
    engine.step()
    return trunk, core


def keep_gradients(engine: Engine) -> None:
    """Keep the gradients in fixed tensors that every micro-batch adds to (stage 0 only)."""
    parameters = list(engine.module.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    engine.zero_grad = functools.partial(torch._foreach_zero_, [parameter.grad for parameter in parameters])


def discard(engine: Engine) -> None:
    """Drop the accumulated gradients without a step; everything else stays as it was before them."""
    if engine.zero_optimization_stage() == 0:
        engine.zero_grad()
        engine.micro_steps += 1
        return
    # DeepSpeed skips a step, with all its bookkeeping, when a gradient is not finite; so make them so.
    trunk, core = Gradients.accumulated(engine)
    for gradient in trunk + core:
        gradient.fill_(torch.nan)
    if engine.zero_cpu_offload():
        engine.optimizer.local_overflow = True  # where it looks, once gradients have left the device
    engine.optimizer.check_grad_overflow = True  # stages 1 and 2 do not check by default
    engine.step()
    engine.optimizer.check_grad_overflow = False
    assert not engine.was_step_applied()
    torch._foreach_zero_(trunk + core)  # stage 3 keeps them, and never overwrites a partition's padding


def weights(engine: Engine, keep: bool) -> dict[str, torch.Tensor]:
    """Return the model's full state dict as fp32 CPU copies. All ranks must call it; those without `keep` get {}."""
    parameters, sharded = list(engine.module.parameters()), engine.zero_optimization_stage() == 3
    if sharded:  # what was fetched ahead for a step that an evaluation took the place of is still on its way
        engine.optimizer.empty_partition_cache()
    with deepspeed.zero.GatheredParameters(parameters, enabled=sharded):
        spread = {name: _all_experts(p) for name, p in engine.module.named_parameters() if is_spread(p)}
        state = engine.module.state_dict() | spread if keep else {}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


@torch.no_grad()
def assign(engine: Engine, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Replace the model's weights by full tensors, by name; the optimizer's own copies stay as they are. All ranks must
    call it, with the same ones."""
    parameters: dict[str, Any] = dict(engine.module.named_parameters())
    sharded = engine.zero_optimization_stage() == 3
    for name, tensor in tensors:
        own = parameters[name]
        if is_spread(own):
            group = process_groups._get_expert_parallel_group(own.group_name)
            tensor = tensor.chunk(dist.get_world_size(group))[dist.get_rank(group)]
        with deepspeed.zero.GatheredParameters([own], modifier_rank=0, enabled=sharded):
            own.copy_(tensor)


def _all_experts(own: Any) -> torch.Tensor:
    """A block's weights of all experts, from those of this rank."""
    group = process_groups._get_expert_parallel_group(own.group_name)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own.detach(), group=group)
    return torch.cat(parts)


def fragments(engine: Engine) -> Iterator[tuple[str, torch.Tensor, Fragment]]:
    """Yield every parameter's name, the tensor that the optimizer steps in its place, and which part of it this rank
    holds there."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if stage == 0:
        for parameter, name in names.items():
            yield name, parameter, Fragment(parameter.shape, 0, 0, parameter.numel(), shared=False)
        return
    flats = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    groups = optimizer.fp16_groups if stage == 3 else optimizer.bit16_groups
    for flat, parameters in zip(flats, groups, strict=True):
        begin = place = 0  # of a parameter: its offset in what is divided over the ranks, and in `flat`
        for parameter in parameters:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            # Stage 3 divides each parameter, the others all of a group as one.
            numel, size = math.prod(shape), parameter.partition_numel() if stage == 3 else flat.numel()
            # Ranks with the same experts share those; each has a part of all.
            parts = process_groups._get_expert_parallel_world_size(parameter.group_name) if is_spread(parameter) else 1
            rank, part = divmod(dist.get_rank(), parts)
            start = max(0, rank * size - begin)
            length = max(0, min(numel, (rank + 1) * size - begin) - start)
            shared = begin // size < (begin + numel - 1) // size
            whole = shape if parts == 1 else (parts * shape[0], *shape[1:])
            yield names[parameter], flat, Fragment(whole, part * numel + start, place, length, shared)
            begin, place = (0, place + size) if stage == 3 else (begin + numel, place + length)
