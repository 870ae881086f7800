"""The frozen base divided among the processes of a run, for cards that cannot hold it whole.

What is trained stays whole in every process: a LoRA is a small part of its base, and its optimizer, checkpoints, average
and export are then the same as without. A block's weights are gathered while it runs, forward and backward, and only the
gradients of what is trained are exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from fe2e_core.folding import CONSTANT


def shard_frozen(
    transformer: nn.Module, trained: Sequence[nn.Parameter], device: torch.device, offload: bool = False
) -> None:
    """Divide a transformer among all processes, in place, one block after the other.

    transformer: on the CPU, as it was read; afterwards on `device`, this process's share of it and what is whole.
    trained: parameters that stay whole, as folded constants do. offload: shares wait in the CPU's memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    whole = set(trained) | {p for name, p in transformer.named_parameters() if name.endswith("." + CONSTANT)}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    # the outermost layers as well are given back after each pass, so that a process holds its share and no more
    settings = {
        "reshard_after_forward": True,
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        "ignored_params": whole,
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        fully_shard(block, **settings)
    fully_shard(transformer, **settings)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make every gradient the mean over all processes, as DistributedDataParallel does."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient in gradients:
        gradient.div_(dist.get_world_size())
    waiting = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for work in waiting:
        work.wait()
