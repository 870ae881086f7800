"""The fine-tuning loop: accelerate's processes, our checkpoints; the same run however often it is killed.

Nothing random depends on anything but the seed, the number of a batch and a picture's place in it, so that a
resumed run, or one on another number of processes, sees the same pictures, flips and noise."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from train.adapter import attach, trained_modules
from train.average import WeightAverage
from train.bases import Base, open_base
from train.cache import LatentCache
from train.data.loader import GivenBatch, Loader
from train.data.mixture import Mixture, MixtureSampler
from train.dispersive import Dispersion, tap_single_block
from train.encoding import EncodedBatch, encode_picture, stack
from train.flow import flow_loss
from train.labels import label_frame
from train.lora_export import LoraNotes, tensors_digest, write_kohya
from train.low_bit import check_available, make_optimizer
from train.recipe import FinetuneConfig, Training
from train.run_state import Position, RunState
from train.sharding import Processes
from train.validation import Scores, Validation
from train.watching import StepReport, Watch

log = logging.getLogger(__name__)

_NOISE = 77
_LOSSES = ("depth", "normal", "dispersive")


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


class Finetuning:
    """One run, ready to go. `run` finishes it; stopped at any moment, another object with the same
    configuration goes on from its newest checkpoint."""

    def __init__(self, config: FinetuneConfig, digest: bool = True):
        self.config = config
        training = config.training
        check_available(training.optimizer, config.base.dtype)
        config.watch.check()
        # no mixed precision, whatever accelerate is configured for: [base] dtype is what the base is computed in
        self.accelerator = Accelerator(mixed_precision="no")
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        if ranks > 1 and config.dispersive.weight and config.dispersive.source == "queue":
            raise ValueError(
                "[dispersive] source = 'queue' remembers one process only; on several use 'gather'"
            )
        self.mixture = config.data.open()
        self.total = total_steps(training, config.data.batch, self.mixture)
        self.validation = (
            Validation(
                config.validation, config.objective, training.seed, self.mixture.sources[0].size, self.accelerator
            )
            if config.validation.every
            else None
        )
        self.base: Base = open_base(config.base, digest)
        self.cache = self._open_cache()
        self.loader = Loader(
            self.mixture,
            MixtureSampler(self.mixture, config.data.batch, rank, ranks),
            config.data.workers,
            partial(label_frame, scheme=config.objective.quantization),
            self.cache,
        )
        transformer = self.base.transformer
        self.trained = attach(self.base, config.lora, training.seed)
        self.optimizer = make_optimizer(
            training.optimizer, self.trained, training.learning_rate, training.weight_decay
        )
        self.dispersion = Dispersion(config.dispersive) if config.dispersive.weight else None
        self.tap = tap_single_block(transformer, config.dispersive) if self.dispersion else None
        transformer.train()
        if training.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        self.base.autoencoder.to(self.accelerator.device)
        parameters = [parameter for _, parameter in self.trained]
        self.processes = Processes(self.accelerator, transformer, parameters, config.base.shard)
        self.model = self.processes.model
        self.average = WeightAverage(self.trained, training.ema) if training.ema else None
        self.state = RunState(
            config.folder, self.trained, self.optimizer, self.average, config.identity(), training.keep
        )
        torch.manual_seed(training.seed)  # nothing below draws from it; if something ever does, it resumes
        position = self.state.restore()
        restored = "" if position is None else tensors_digest(dict(self.trained))
        self.processes.check_together(0 if position is None else position.step, restored)
        self.step = 0
        if position is not None:
            self.step = position.step
            self.loader.load_state_dict(position.sampler)
            if self.dispersion:
                self.dispersion.load_state_dict(position.queue)
            log.info("resumed after step %d of %d", self.step, self.total)
        self.best = self._best_so_far()
        self.watch = (
            Watch(config, None if position is None else position.step)
            if self.accelerator.is_main_process
            else None
        )

    def run(
        self, on_step: Callable[[StepReport], None] = lambda report: None, until: int | None = None
    ) -> Path:
        """Train to the end, or to step `until`, and write the LoRA as it then is. Returns its file.

        Raises FloatingPointError naming the batch when loss or gradient is not finite; the last checkpoint
        stays."""
        last = self.total if until is None else min(until, self.total)
        batches = self.loader.given()
        saved = self.step
        if self.step == 0:
            self._validate()
        while self.step < last:
            report = self._one_step(batches)
            if self.watch is not None:
                self.watch.stepped(report)
            on_step(report)
            every = self.config.validation.every
            if every and (self.step % every == 0 or self.step == self.total):
                self._validate()
            # after the validation, which a run that is killed in between has to repeat
            if self.step % self.config.training.save_every == 0 or self.step == last:
                self.save()
                saved = self.step
        if saved != self.step:
            self.save()
        return self.export()

    def _one_step(self, batches: Iterator[GivenBatch]) -> StepReport:
        training = self.config.training
        rate = training.learning_rate * learning_factor(self.step, self.total, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(3)
        names: list[str] = []
        for micro in range(training.accumulate):
            last = micro + 1 == training.accumulate
            given = next(batches)
            batch = self._encoded(given)
            names.append(f"batch {given.number} ({', '.join(batch.names)})")
            with nullcontext() if last else self.processes.silent():
                losses = self._losses(batch, given.number)
                loss = losses[0] + losses[1] + self.config.dispersive.weight * losses[2]
                parts = [part.detach().float().cpu() for part in losses]
                of = ", ".join(f"{name} {part:g}" for name, part in zip(_LOSSES, parts, strict=True))
                self._check_finite(f"loss ({of})", float(loss.detach()), names[-1])
                (loss / training.accumulate).backward()
            sums += torch.stack(parts) / training.accumulate
        self.processes.exchange()
        parameters = [parameter for _, parameter in self.trained]
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.clip or math.inf)
        self._check_finite("gradient", float(norm), "; ".join(names))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "mean").cpu()
        depth, normal, dispersive = sums.tolist()
        return StepReport(self.step, depth, normal, dispersive, float(norm), rate)

    def _check_finite(self, what: str, value: float, where: str) -> None:
        """Raises FloatingPointError, in all processes alike, naming the batches of those where it is no number."""
        problems = [] if math.isfinite(value) else [f"the {what} is {value} in {where}"]
        if self.accelerator.num_processes > 1:
            count = torch.tensor(float(len(problems)), device=self.accelerator.device)
            problems = gather_object(problems) if float(self.accelerator.reduce(count, "sum")) else []
        if problems:
            raise FloatingPointError(f"step {self.step + 1}: {'; '.join(problems)}")

    def _open_cache(self) -> LatentCache | None:
        folder = self.config.cache.folder
        if not folder:
            return None
        digest = tensors_digest(self.base.autoencoder.state_dict())
        cache = LatentCache(folder, self.mixture, digest, self.config.objective.quantization)
        log.info("latent cache at '%s': up to %.1f GiB", folder, cache.size() / 2**30)
        return cache

    def _encoded(self, batch: GivenBatch) -> EncodedBatch:
        device = self.accelerator.device
        pictures = []
        for given in batch.pictures:
            picture = given.item
            if not given.found:
                picture = encode_picture(self.base.autoencoder, picture, device)
                if self.cache is not None:
                    self.cache.keep(given.draw, picture)
            pictures.append(picture)
        return stack(pictures, device)

    def _losses(self, batch: EncodedBatch, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """(depth, normal, dispersive) losses of one batch, the run's `number`-th."""
        config = self.config
        first = self.accelerator.process_index * len(batch.names)
        seeds = [(config.training.seed, _NOISE, number, first + i) for i in range(len(batch.names))]
        arguments = (
            self.base.velocity(self.model),
            config.objective,
            batch.image,
            batch.depth,
            batch.normal,
            batch.depth_mask,
            batch.normal_mask,
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

    def _validate(self) -> None:
        """Score the weights that would be exported now; where they are the best so far, keep them."""
        if self.validation is None:
            return
        with self._exported_weights():
            scores, rows = self.validation(self.base, self.model)
        if self.watch is not None:
            self.watch.validated(self.step, scores, rows)
        metric = self.config.validation.metric
        if self.step and scores.better_than(self.best, metric):
            self.best = scores
            if self.accelerator.is_main_process:
                self._keep_best(scores)

    def _keep_best(self, scores: Scores) -> None:
        try:
            with self._exported_weights():
                self._write_lora(self.config.folder / f"{self.config.name}_best.safetensors")
        except OSError as error:
            log.error("step %d: the best LoRA was not written (%s); the run goes on", self.step, error)
            return
        # last: with this file the LoRA counts as written
        about = {"step": self.step, "scores": scores.as_row(), "validation": self.config.validation.identity()}
        self.state.save_best(self._position(), about)

    def _best_so_far(self) -> Scores | None:
        """The scores of the best checkpoint, as it remembers them; None where they were of another set."""
        about = self.state.read_best() if self.validation is not None else None
        if about is None or about["validation"] != self.config.validation.identity():
            return None
        return Scores(**{"angle": math.nan, **about["scores"]})

    def _position(self) -> Position:
        return Position(
            self.step, self.loader.state_dict(), self.dispersion.state_dict() if self.dispersion else {}
        )

    def save(self) -> None:
        """Write a checkpoint (the first process does)."""
        if self.accelerator.is_main_process:
            self.state.save(self._position())

    def _exported_weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.in_place()

    def close(self) -> None:
        """Say goodbye to the trackers; the run may be taken up again by another object."""
        if self.watch is not None:
            self.watch.close()

    def export(self) -> Path:
        """Write the LoRA in kohya's format, as ComfyUI loads it: of the averaged weights, where there are any.
        Returns the file.
        """
        path = self.config.folder / f"{self.config.name}.safetensors"
        if self.accelerator.is_main_process:
            with self._exported_weights():
                self._write_lora(path)
        return path

    def _write_lora(self, path: Path) -> None:
        """The LoRA of the parameters as they stand."""
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
        path.parent.mkdir(parents=True, exist_ok=True)
        write_kohya(path, trained_modules(self.base, config.lora), notes)
