"""The processes of a run: each has the base whole, or they divide it among them where no card can hold it.

What is trained stays whole in every process: a LoRA is a small part of its base, and its optimizer, checkpoints, average
and export are then the same as without. A block's weights are gathered while it runs, forward and backward, and only the
gradients of what is trained are exchanged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import nn

from fe2e_core.folding import CONSTANT

log = logging.getLogger(__name__)


class Processes:
    """A transformer as the processes of a run have it: `model` is what they call.

    Plain data parallelism is DistributedDataParallel's. The base is divided when `shard` says so, or when accelerate was
    configured for FSDP, or for DeepSpeed's stage 3: that is what these do to a frozen base, and all that is left to do
    where everything trained is small. So one configuration gives the same numbers under any of them."""

    def __init__(
        self, accelerator: Accelerator, transformer: nn.Module, trained: Sequence[nn.Parameter], shard: bool
    ):
        kind, several = accelerator.distributed_type, accelerator.num_processes > 1
        self._several = several
        self.divided = several and (shard or kind == DistributedType.FSDP or _zero_stage(accelerator) == 3)
        self._trained = trained
        self._exchanges = self.divided or (several and kind == DistributedType.DEEPSPEED)
        if self.divided:
            shard_frozen(transformer, trained, accelerator.device, _offloads(accelerator))
            log.info("the base is divided among %d processes", accelerator.num_processes)
        else:
            transformer.to(accelerator.device)
        self.model = transformer if self._exchanges else accelerator.prepare_model(transformer)

    def silent(self) -> AbstractContextManager[None]:
        """Inside, a forward and a backward pass exchange no gradients: another one of the same step follows."""
        wrapped = isinstance(self.model, nn.parallel.DistributedDataParallel)
        return self.model.no_sync() if wrapped else nullcontext()

    def exchange(self) -> None:
        """After the last backward pass of a step: every process has the same gradients then."""
        if self._exchanges:
            average_gradients(self._trained)

    def check_together(self, step: int, digest: str) -> None:
        """Raises ValueError, in all processes alike, unless each of them goes on from the same state of the same step.

        digest: of what was restored, "" where the run begins. DistributedDataParallel makes the weights equal when it
        wraps the model, before they are restored, and never looks at them again."""
        if not self._several:
            return
        found = gather_object([(step, digest)])
        if len(set(found)) > 1:
            stands = "; ".join(
                f"process {rank} " + (f"goes on after step {step} (weights {digest[:8]})" if digest else "begins anew")
                for rank, (step, digest) in enumerate(found)
            )
            raise ValueError(f"[out] must be one folder that all machines see, with the same checkpoint for each process: {stands}")


def _zero_stage(accelerator: Accelerator) -> int:
    """DeepSpeed's stage, 0 without DeepSpeed."""
    used = accelerator.distributed_type == DistributedType.DEEPSPEED
    return int(accelerator.state.deepspeed_plugin.zero_stage) if used else 0


def _offloads(accelerator: Accelerator) -> bool:
    """Whether accelerate's configuration keeps the shares in the CPU's memory."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.state.deepspeed_plugin.offload_param_device == "cpu"
    policy = getattr(getattr(accelerator.state, "fsdp_plugin", None), "cpu_offload", None)
    return isinstance(policy, CPUOffloadPolicy) or bool(getattr(policy, "offload_params", False))


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
