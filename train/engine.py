"""The fine-tuning loop: accelerate's processes, our checkpoints; the same run however often it is killed.

Nothing random depends on anything but the seed, the number of a batch and a picture's place in it, so that a
resumed run, or one on another number of processes, sees the same pictures, flips and noise."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from fe2e_core.geometry import normal_to_network
from fe2e_core.quantization import encode as encode_label
from fe2e_core.quantization import percentile_range
from train import run_state
from train.adapter import attach, trained_modules
from train.backend import encode
from train.bases import Base, open_base
from train.data.frame import Batch
from train.data.loader import Loader
from train.data.mixture import Mixture, MixtureSampler
from train.dispersive import Dispersion, tap_single_block
from train.flow import flow_loss
from train.lora_export import LoraNotes, write_kohya
from train.objective import latent_mask
from train.recipe import FinetuneConfig, Training

log = logging.getLogger(__name__)

_NOISE = 77


@dataclass(frozen=True)
class StepReport:
    """One finished optimizer step: mean losses over its batches (unweighted), gradient norm before clipping."""

    step: int
    depth: float
    normal: float
    dispersive: float
    gradient: float
    rate: float


def total_steps(training: Training, batch: int, mixture: Mixture) -> int:
    """Optimizer steps of the run. Raises ValueError for epochs of an endless dataset."""
    if training.steps:
        return training.steps
    lengths = [source.length for source in mixture.sources]
    if any(length is None for length in lengths):
        raise ValueError("[training] epochs of an endless dataset have no end; give steps")
    return max(1, math.ceil(training.epochs * sum(lengths) / (batch * training.accumulate)))


def learning_factor(step: int, total: int, training: Training) -> float:
    """Share of the learning rate in step 0, 1, ...: linear warm-up, then constant or along a cosine to 0.01."""
    warm = min(1.0, (step + 1) / (training.warmup + 1))
    if training.schedule == "constant":
        return warm
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))


def label_pictures(batch: Batch, scheme: str) -> tuple[Tensor, Tensor]:
    """(depth, normals) as pictures (B,3,H,W) in [-1,1] for the autoencoder.

    Depth is Eq. 7's label in BF16, the mask applied before the percentiles; pixels that do not count are as
    far as can be. Normals are in the network's axes. Labels beyond [-1,1] are clipped: decoding clamps there
    as well."""
    labels = []
    for depth, valid in zip(batch.depth, batch.valid, strict=True):
        span = percentile_range(depth, valid, scheme)
        label = encode_label(torch.where(valid, depth, 1.0), span, bf16="nearest").clamp(-1, 1)
        labels.append(torch.where(valid, label, -1.0 if scheme == "inverse" else 1.0))
    depth_pictures = torch.stack(labels)[:, None].expand(-1, 3, -1, -1)
    normals = normal_to_network(batch.normal.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return depth_pictures.contiguous(), normals.contiguous()


class Finetuning:
    """One run, ready to go. `run` finishes it; stopped at any moment, another object with the same
    configuration goes on from its newest checkpoint."""

    def __init__(self, config: FinetuneConfig, digest: bool = True):
        self.config = config
        training = config.training
        self.accelerator = Accelerator(gradient_accumulation_steps=1)
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        if ranks > 1 and config.dispersive.weight and config.dispersive.source == "queue":
            raise ValueError(
                "[dispersive] source = 'queue' remembers one process only; on several use 'gather'"
            )
        self.mixture = config.data.open()
        self.total = total_steps(training, config.data.batch, self.mixture)
        self.loader = Loader(
            self.mixture, MixtureSampler(self.mixture, config.data.batch, rank, ranks), config.data.workers
        )
        self.base: Base = open_base(config.base, digest)
        transformer = self.base.transformer
        self.trained = attach(self.base, config.lora, training.seed)
        self.optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self.trained],
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
        )
        self.dispersion = Dispersion(config.dispersive) if config.dispersive.weight else None
        self.tap = tap_single_block(transformer, config.dispersive) if self.dispersion else None
        transformer.train()
        if training.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        device = self.accelerator.device
        self.base.autoencoder.to(device)
        self.model = self.accelerator.prepare_model(transformer.to(device))
        self.step = 0
        position = run_state.restore(config.folder, self.trained, self.optimizer, config.identity())
        if position is not None:
            self.step = position.step
            self.loader.load_state_dict(position.sampler)
            if self.dispersion:
                self.dispersion.load_state_dict(position.queue)
            log.info("resumed after step %d of %d", self.step, self.total)

    def run(
        self, on_step: Callable[[StepReport], None] = lambda report: None, until: int | None = None
    ) -> Path:
        """Train to the end, or to step `until`, and write the LoRA as it then is. Returns its file.

        Raises FloatingPointError naming the batch when loss or gradient is not finite; the last checkpoint
        stays."""
        last = self.total if until is None else min(until, self.total)
        batches = iter(self.loader)
        saved = self.step
        while self.step < last:
            report = self._one_step(batches)
            self._note(report)
            on_step(report)
            if self.step % self.config.training.save_every == 0 or self.step == last:
                self.save()
                saved = self.step
        if saved != self.step:
            self.save()
        return self.export()

    def _one_step(self, batches: Iterator[Batch]) -> StepReport:
        training = self.config.training
        rate = training.learning_rate * learning_factor(self.step, self.total, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(3)
        names: list[str] = []
        for micro in range(training.accumulate):
            batch = next(batches)
            names.append(f"batch {batch.number} ({', '.join(batch.names)})")
            losses = self._losses(batch)
            loss = losses[0] + losses[1] + self.config.dispersive.weight * losses[2]
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(
                    f"step {self.step + 1}: the loss is {loss.item()} in {names[-1]}; nothing was changed "
                    "by it"
                )
            last = micro + 1 == training.accumulate
            with torch.no_grad():
                sums += torch.stack([part.detach().float().cpu() for part in losses]) / training.accumulate
            if last or self.accelerator.num_processes == 1:
                self.accelerator.backward(loss / training.accumulate)
            else:
                with self.accelerator.no_sync(self.model):
                    self.accelerator.backward(loss / training.accumulate)
        parameters = [parameter for _, parameter in self.trained]
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.clip or math.inf)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"step {self.step + 1}: the gradient is {norm.item()} in {'; '.join(names)}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "mean").cpu()
        depth, normal, dispersive = sums.tolist()
        return StepReport(self.step, depth, normal, dispersive, float(norm), rate)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(depth, normal, dispersive) losses of one batch."""
        config, device = self.config, self.accelerator.device
        pictures = (batch.image * 2 - 1, *label_pictures(batch, config.objective.quantization))
        with torch.no_grad():
            image, depth, normal = (encode(self.base.autoencoder, picture.to(device)) for picture in pictures)
        first = self.accelerator.process_index * len(batch.names)
        seeds = [(config.training.seed, _NOISE, batch.number, first + i) for i in range(len(batch.names))]
        arguments = (
            self.base.velocity(self.model),
            config.objective,
            image,
            depth,
            normal,
            latent_mask(batch.valid).to(device),
            latent_mask(batch.normal_valid).to(device),
            self.base.conditioning,
            seeds,
            self._average_over_processes,
        )
        if self.dispersion is None or self.tap is None:
            depth_loss, normal_loss = flow_loss(*arguments)
            return depth_loss, normal_loss, depth_loss.new_zeros(())
        with self.tap:
            depth_loss, normal_loss = flow_loss(*arguments)
        return depth_loss, normal_loss, self.dispersion(self.tap.take())

    def _average_over_processes(self, value: Tensor) -> Tensor:
        """The mean of a number without gradient over all processes."""
        return value if self.accelerator.num_processes == 1 else self.accelerator.reduce(value, "mean")

    def save(self) -> None:
        """Write a checkpoint (the first process does)."""
        if self.accelerator.is_main_process:
            queue = self.dispersion.state_dict() if self.dispersion else {}
            position = run_state.Position(self.step, self.loader.state_dict(), queue)
            run_state.save(
                self.config.folder,
                position,
                self.trained,
                self.optimizer,
                self.config.identity(),
                self.config.training.keep,
            )

    def _note(self, report: StepReport) -> None:
        """One line of JSON a step; what a killed run wrote beyond its checkpoint is written again, later
        lines count.
        """
        if self.accelerator.is_main_process:
            self.config.folder.mkdir(parents=True, exist_ok=True)
            with (self.config.folder / "losses.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(report.__dict__) + "\n")

    def export(self) -> Path:
        """Write the LoRA in kohya's format, as ComfyUI loads it. Returns the file."""
        path = self.config.folder / f"{self.config.name}.safetensors"
        if self.accelerator.is_main_process:
            config, size = self.config, self.mixture.sources[0].size
            notes = LoraNotes(
                title=config.name,
                base=self.base.file,
                base_sha256=self.base.digest,
                data=self.mixture.fingerprint(),
                quantization=config.objective.quantization,
                height=size[0],
                width=size[1],
                steps=self.step,
                batch=config.data.batch * config.training.accumulate,
                learning_rate=config.training.learning_rate,
                seed=config.training.seed,
                config=config.identity(),
            )
            write_kohya(path, trained_modules(self.base, config.lora), notes)
        return path
