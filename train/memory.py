"""The memory that a fine-tuning step needs on a GPU, by arithmetic: the step runs on the meta device, where
tensors have sizes and no data (`train/allocation.py`). No GPU and no weights are needed.

A step is counted with two double and two single blocks, and with one more of each: every stage grows by the
same amount with each block, so the true depth follows from these three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fe2e_core.architecture import TransformerSize, transformer_shapes
from fe2e_core.conditioning import Conditioning
from fe2e_core.folding import CONSTANT
from fe2e_core.keymaps import flux_to_diffusers
from train.adapter import attach
from train.allocation import Allocations, FusedAttention, counting
from train.backend import LATENT_CHANNELS, build_autoencoder, decode, encode
from train.bases import DTYPES, Base, block_linears, build_empty, store_frozen
from train.config import AutoencoderShape
from train.dispersive import Dispersion, DispersiveConfig, tap_single_block
from train.flow import flow_loss
from train.four_bit_sizes import store_in_four_bits
from train.recipe import LoraShape, Objective

#: Bytes of optimizer state for each trained number.
STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2 * (1 + 4 / 256)}
#: Assumed, not measured: CUDA's context with the libraries' workspaces, and the share of what comes and goes that the
#: allocator holds without need.
CONTEXT_BYTES, SPARE = 2**30, 0.05

RELEASED = TransformerSize(hidden=3072, context=4096, pooled=768, double_blocks=19, single_blocks=38)
RELEASED_AUTOENCODER = AutoencoderShape(width=128, multipliers=(1, 2, 4, 4), blocks=2)

_FEW = 2


@dataclass(frozen=True)
class StepPlan:
    """One step on one device: batch pictures of height x width, text_tokens beside them.

    dtype, fold: of the base, as in `recipe.BaseFiles`. guidance: the base has an input for it. optimizer: one of
    STATE_BYTES. averaged: an average of the trained tensors is kept. validation: pictures are decoded between steps.
    shards: processes that divide the base among them; what is estimated is one of them.
    """

    height: int
    width: int
    batch: int = 1
    size: TransformerSize = RELEASED
    autoencoder: AutoencoderShape = RELEASED_AUTOENCODER
    text_tokens: int = 640
    guidance: bool = False
    dtype: str = "bf16"
    fold: bool = False
    gradient_checkpointing: bool = True
    objective: Objective = field(default_factory=Objective)
    lora: LoraShape = field(default_factory=LoraShape)
    dispersive: DispersiveConfig = field(default_factory=lambda: DispersiveConfig(weight=0.0))
    optimizer: str = "adamw"
    averaged: bool = False
    validation: bool = False
    shards: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of one picture's sequence: text, start, picture."""
        return self.text_tokens + 2 * (self.height // 16) * (self.width // 16)


@dataclass(frozen=True)
class Estimate:
    """Bytes. stays: what is held all the time. stages: what each stage of a step needs on top of that."""

    stays: dict[str, int]
    stages: dict[str, int]

    @property
    def counted(self) -> int:
        """The most that is held at any time, as counted."""
        return sum(self.stays.values()) + max(self.stages.values())

    @property
    def total(self) -> int:
        """`counted` and what is assumed besides."""
        return round(self.counted + SPARE * max(self.stages.values()) + CONTEXT_BYTES)


@dataclass(frozen=True)
class _Counted:
    """Bytes of the base and of the trained tensors, and the peak of each stage on top of both."""

    base: int
    trained: int
    stages: dict[str, int]

    def extrapolated(self, other: _Counted, times: int) -> _Counted:
        """These, and `times` the difference to a count with one block more."""

        def further(here: int, there: int) -> int:
            return here + times * (there - here)

        stages = {key: further(value, other.stages[key]) for key, value in self.stages.items() if key in other.stages}
        return _Counted(further(self.base, other.base), further(self.trained, other.trained), stages)


def estimate(plan: StepPlan) -> Estimate:
    """What the plan needs. Raises ValueError for sides that are no multiples of 16."""
    if plan.height % 16 or plan.width % 16 or min(plan.height, plan.width) < 16:
        raise ValueError(f"size: found {plan.height}x{plan.width}; expected multiples of 16")
    counted = _at_depth(plan)
    autoencoder, encoding, decoding = _count_autoencoder(plan.autoencoder, plan.height, plan.width)
    states = round(counted.trained / 4 * STATE_BYTES[plan.optimizer])
    stays = {"base": counted.base, "LoRA": counted.trained, "optimizer states": states, "autoencoder": autoencoder}
    if plan.averaged:
        stays["averaged weights"] = counted.trained
    if plan.dispersive.weight and plan.dispersive.source == "queue":
        element = torch.empty(0, dtype=DTYPES[plan.dtype]).element_size()
        stays["remembered features"] = plan.dispersive.queue * plan.tokens * plan.size.hidden * element
    backward = {key: value for key, value in counted.stages.items() if key.startswith("backward")}
    forward = {key: value for key, value in counted.stages.items() if key.startswith("forward")}
    # gradients; AdamW's lists of tensors hold one number more for each trained one, the 8-bit one works in place
    update = counted.trained * (1 if plan.optimizer == "adamw8bit" else 2)
    stages = {"encoding": encoding, "forward": max(forward.values()), "backward": max(backward.values()),
              "optimizer step": update}  # fmt: skip
    if plan.shards > 1:
        share, gathered, copied = divided_base(plan)
        stays |= {"base": share, "gathered from others": gathered}
        stages["forward"] += copied
    if plan.validation:
        stages["validation"] = max(decoding, encoding)
    return Estimate(stays, stages)


def _at_depth(plan: StepPlan) -> _Counted:
    double, single = plan.size.double_blocks, plan.size.single_blocks

    def count(d: int, s: int) -> _Counted:
        size = replace(plan.size, double_blocks=d, single_blocks=s)
        return _count_step(replace(plan, size=size, optimizer="adamw", averaged=False, validation=False, shards=1))

    if double <= _FEW or single <= _FEW or double + single <= 3 * _FEW + 1:
        return count(double, single)
    few, one_double, one_single = count(_FEW, _FEW), count(_FEW + 1, _FEW), count(_FEW, _FEW + 1)
    deeper = few.extrapolated(one_double, double - _FEW)
    wider = few.extrapolated(one_single, single - _FEW)
    stages = {key: deeper.stages[key] + wider.stages[key] - few.stages[key] for key in deeper.stages if key in wider.stages}
    return _Counted(deeper.base + wider.base - few.base, deeper.trained + wider.trained - few.trained, stages)


def divided_base(plan: StepPlan) -> tuple[int, int, int]:
    """What one of `plan.shards` processes holds of the base: (its share and what is not divided, what it gathers, what
    it copies).

    Gathered are the outermost layers, for a whole pass, and two blocks at a time: one runs, the next is fetched
    (`sharding.shard_frozen`). Copied is a block before it runs forward: what was fetched for the one before is still
    held then."""
    with torch.device("meta"):
        model = empty_base(plan).transformer
    held = sum(buffer.nbytes for buffer in model.buffers())
    groups: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if name.endswith("." + CONSTANT):
            held += parameter.nbytes
            continue
        # the first dimension is what is divided, and filled up to equal parts
        rows = parameter.shape[0]
        held += -(-rows // plan.shards) * (parameter.nbytes // rows)
        kind, index, *_ = name.split(".")
        groups[f"{kind}.{index}" if kind.endswith("transformer_blocks") else ""] += parameter.nbytes
    outermost = groups.pop("")
    largest = [size for _, size in groups.most_common(2)]
    return held, outermost + sum(largest), largest[0]


@cache
def _count_step(plan: StepPlan) -> _Counted:
    with counting() as allocations:
        base = empty_base(plan)
        held_by_base = allocations.now
        trained = attach(base, plan.lora, seed=0)
        numbers = sum(parameter.numel() * 4 for _, parameter in trained)
        run_step(base, trained, plan, allocations)
    # constants that are trained are part of the trained tensors, not of the base
    held = held_by_base + sum(p.numel() * 4 for name, p in trained if ".lora_" in name)
    stages = {key: value - held for key, value in allocations.peaks.items() if key}
    return _Counted(held - numbers, numbers, stages)


def empty_base(plan: StepPlan) -> Base:
    """A base of the plan's sizes on the current device, its weights unset; no autoencoder."""
    dtype = DTYPES[plan.dtype]
    shapes = transformer_shapes(plan.size, plan.fold, plan.guidance and not plan.fold)
    weights = {
        name: torch.empty(shape, dtype=torch.float32 if name.endswith("." + CONSTANT) else dtype)
        for name, shape in shapes.items()
    }
    model = build_empty(weights)
    model.load_state_dict(flux_to_diffusers(weights), strict=True, assign=True)
    model.requires_grad_(False)
    if plan.dtype == "nf4" and model.device.type == "meta":
        store_in_four_bits(model, block_linears(model))
    else:
        store_frozen(model, plan.dtype)
    context = torch.empty(1, plan.text_tokens, plan.size.context)
    return Base(model, None, Conditioning(context, torch.empty(1, plan.size.pooled)), None, tuple(weights), {}, "", "")


def run_step(
    base: Base, trained: list[tuple[str, nn.Parameter]], plan: StepPlan, allocations: Allocations | None = None
) -> None:
    """Forward and backward pass of one batch, as the engine makes them, on the current device; gradients stay.

    allocations: told which stage begins."""
    model = base.transformer
    model.train()
    begin: Callable[[str], None] = (lambda stage: None) if allocations is None else allocations.begin
    if plan.gradient_checkpointing:
        contexts = partial(_contexts, allocations is not None)
        model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=contexts))
    dispersion = tap = None
    if plan.dispersive.weight:
        # the first block of its kind: what the loss needs of it is held the longest there
        dispersion, tap = Dispersion(plan.dispersive), tap_single_block(model, replace(plan.dispersive, block=0))
        if plan.dispersive.source == "queue":
            features = torch.empty(plan.tokens, plan.size.hidden, dtype=model.dtype)
            dispersion.load_state_dict({f"{i:04d}": features for i in range(plan.dispersive.queue)})
    marks = _Marks(model, begin)
    latent = (plan.batch, LATENT_CHANNELS, plan.height // 8, plan.width // 8)
    pictures = [torch.zeros(latent) for _ in range(3)]
    masks = [torch.ones(plan.batch, 1, *latent[2:]) for _ in range(2)]
    begin("forward ends")
    with tap or nullcontext():
        parts = flow_loss(base.velocity(model), plan.objective, *pictures, *masks, base.conditioning,
                          [(0, i) for i in range(plan.batch)])  # fmt: skip
    loss = parts[0] + parts[1]
    if dispersion is not None and tap is not None:
        loss = loss + plan.dispersive.weight * dispersion(tap.take())
        tap.close()
    marks.direction = "backward"
    begin("backward begins")
    loss.backward()
    marks.close()


def _contexts(meta: bool) -> tuple[object, object]:
    """Contexts of a checkpointed block's pass and of its repetition, which autograd runs outside of ours."""
    return nullcontext(), FusedAttention() if meta else nullcontext()


class _Marks:
    """Begins a stage whenever a block runs, in the forward pass and when it is run again in the backward pass."""

    def __init__(self, model: FluxTransformer2DModel, begin: Callable[[str], None]):
        self.direction = "forward"
        self._begin = begin
        self._handles = []
        for kind, blocks in (("double", model.transformer_blocks), ("single", model.single_transformer_blocks)):
            for i, block in enumerate(blocks):
                place = "first" if i == 0 else "last" if i + 1 == len(blocks) else f"{i}"
                hook = partial(self._mark, f"{kind} {place}")
                self._handles.append(block.register_forward_pre_hook(hook))

    def _mark(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._begin(f"{self.direction} {name}")

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


@cache
def _count_autoencoder(shape: AutoencoderShape, height: int, width: int) -> tuple[int, int, int]:
    """Bytes of the weights, and what encoding and decoding one picture need on top."""
    with counting() as allocations, torch.no_grad():
        autoencoder: AutoencoderKL = build_autoencoder(shape)
        weights = sum(parameter.numel() * 4 for parameter in autoencoder.parameters())
        held = allocations.now
        allocations.begin("encode")
        encode(autoencoder, torch.empty(1, 3, height, width))
        allocations.begin("decode")
        decode(autoencoder, torch.empty(1, LATENT_CHANNELS, height // 8, width // 8))
    return weights, allocations.peaks["encode"] - held, allocations.peaks["decode"] - held
