"""Data parallel training over processes with one thread each, on one machine.

On a CPU that is shared with other work, threads inside an operation wait for each other hundreds of times a step;
processes that only meet once a step do not. The weights lie in shared memory; every process computes the gradient of
its own share of the batch, and the first one averages them and steps.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Protocol

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

_PATIENCE = 600.0
"""Seconds to wait for the other processes before giving up."""


class Task(Protocol):
    """A piece of training that can be sent to another process."""

    def prepare(self, model: nn.Module) -> None:
        """Called once in every process, before the first step."""

    def loss(self, model: nn.Module, step: int, rank: int, replicas: int) -> Tensor:
        """Scalar loss of this replica's share of the step; random numbers depend on (step, rank) alone."""


def _gradient(model: nn.Module, task: Task, step: int, rank: int, replicas: int, into: Tensor) -> float:
    loss = task.loss(model, step, rank, replicas)
    loss.backward()
    position = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        part = into[position : position + parameter.numel()]
        position += parameter.numel()
        if parameter.grad is None:
            part.zero_()
        else:
            part.copy_(parameter.grad.reshape(-1))
            parameter.grad = None
    return float(loss.detach())


def leave_with_parent() -> None:
    """A stopped run must not leave its helpers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _replica(model: nn.Module, task: Task, rank: int, replicas: int, step: Tensor, gradients: Tensor, losses: Tensor,
             start: threading.Barrier, end: threading.Barrier) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    task.prepare(model)
    while True:
        start.wait(None)
        if int(step) < 0:
            return
        losses[rank] = _gradient(model, task, int(step), rank, replicas, gradients[rank])
        end.wait(_PATIENCE)


def train_replicas(
    model: nn.Module,
    task: Task,
    steps: range,
    replicas: int,
    update: Callable[[int, float], None],
) -> None:
    """Run `steps`; after each, gradients lie averaged in the parameters and `update(step, mean loss)` is called.

    `model` moves to shared memory and must be changed in place only. Raises RuntimeError (a broken barrier) when
    another process died.
    """
    model.share_memory()
    trainable = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.zeros(replicas, sum(p.numel() for p in trainable)).share_memory_()
    losses = torch.zeros(replicas).share_memory_()
    current = torch.zeros((), dtype=torch.int64).share_memory_()
    context = multiprocessing.get_context("spawn")
    start, end = context.Barrier(replicas), context.Barrier(replicas)
    others = [
        context.Process(
            target=_replica, args=(model, task, rank, replicas, current, gradients, losses, start, end), daemon=True
        )
        for rank in range(1, replicas)
    ]
    threads = torch.get_num_threads()
    for process in others:
        process.start()
    torch.set_num_threads(1)
    task.prepare(model)
    try:
        for step in steps:
            current.fill_(step)
            start.wait(_PATIENCE)
            losses[0] = _gradient(model, task, step, 0, replicas, gradients[0])
            end.wait(_PATIENCE)
            mean, position = gradients.mean(0), 0
            for parameter in trainable:
                # In the parameter's own memory order: fused optimizers step through both as flat memory.
                parameter.grad = torch.empty_like(parameter, requires_grad=False)
                parameter.grad.copy_(mean[position : position + parameter.numel()].view_as(parameter))
                position += parameter.numel()
            update(step, float(losses.mean()))
            for parameter in trainable:
                parameter.grad = None
        current.fill_(-1)
        start.wait(_PATIENCE)
        for process in others:
            process.join(_PATIENCE)
    finally:
        torch.set_num_threads(threads)
        for process in others:
            if process.is_alive():
                process.terminate()
