"""The runs of the study in their order, each of which is done once, whenever the command is given again."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from train.backend import decode
from train.dispersive import DispersiveConfig, dispersive_loss, tap_single_block
from train.flow import flow_loss
from train.state import load_state
from train.thesis import features as feature
from train.thesis.edits import EDITS, blank
from train.thesis.loop import Schedule, finished, train, weights_file
from train.thesis.network import BASES, EDITOR, GENERATOR, SCRATCH, Twin, answer, pretraining_loss
from train.thesis.pictures import LABELS, Sets, label_of, open_autoencoder, open_sets
from train.thesis.rates import at, at_the_other_rate, best_rate, sweep_key
from train.thesis.results import Results, guess_key
from train.thesis.rows import PHASES, Row, rows
from train.thesis.scoring import (
    Predicted,
    latent_error,
    predict_latents_of,
    read,
    read_labels,
    read_normals,
    score,
    velocity_of_twin,
)
from train.thesis.settings import ThesisConfig
from train.thesis.sharing import claimed

log = logging.getLogger(__name__)

_ORDER, _NOISE = 31, 32
_PAUSE = 0.5
"""Seconds between two looks at what another process is doing."""
_PROBED = 2048
"""Training scenes on whose features the linear readings are fitted."""
SHOWN = (0, 1, 6, 9)
"""Held-out scenes drawn in the figures."""

MAPS = (0, 1)
"""Those of them whose feature maps are kept."""


class OutOfTime(Exception):
    """The time given is over. Everything that is finished is kept, and the run in progress too."""


class Study:
    """One configuration's study. may_go_on is asked after every step; on_step is told what happens, in lines.

    Raises what opening the autoencoder and the results raises."""

    def __init__(
        self,
        config: ThesisConfig,
        may_go_on: Callable[[], bool] = lambda: True,
        on_step: Callable[[str], None] = log.info,
    ):
        self.config, self._may_go_on, self._on_step = config, may_go_on, on_step
        self.autoencoder, digest = open_autoencoder(config.autoencoder)
        self.folder = config.folder / _short(config.identity() + digest)
        size = config.pictures
        self._pictures = config.folder / f"pictures-{size.height}x{size.width}-{_short(digest)}"
        self.shown = self.folder / "shown"
        self.results = Results(config.results, config.identity(), digest, self.folder / "locks" / "results")
        self.rows = {row.name: row for row in rows(config.finetuning.euler)}
        self._began = time.process_time()
        self._sets: Sets | None = None

    @property
    def sets(self) -> Sets:
        """The pictures; opened when they are first asked for. Raises OutOfTime."""
        if self._sets is None:
            self._sets = open_sets(
                self._pictures, self.config.pictures, self.autoencoder, self._may_go_on, self._on_step
            )
        if self._sets is None:
            raise OutOfTime
        return self._sets

    def run(self) -> bool:
        """Everything that is not there yet. False when time ran out before the end."""
        rates, seeds = self.config.finetuning.rates, (self.config.sweep_seed, *self.config.seeds)
        try:
            self._share([("floor", self._floor)])
            self._share([(f"{kind}-{seed}", partial(self._base, kind, seed)) for seed in seeds for kind in (EDITOR, GENERATOR)])
            self._share([(f"sweep-{base}-{rate:g}", partial(self._sweep, base, rate)) for base in BASES for rate in rates])
            self.results.refresh()
            self._share([(f"{row.name}-{seed}-{rate or 'best'}", partial(self._row, row, seed, rate))
                         for row, seed, rate in self.schedule()])  # fmt: skip
        except OutOfTime:
            return False
        finally:
            self._spend()
        return True

    def _share(self, work: Sequence[tuple[str, Callable[[], object]]]) -> None:
        """Do what is not done yet, in this order, together with other processes of the same study: nobody begins what
        another has begun, and nobody goes on before all is done. Raises OutOfTime."""
        left = list(work)
        while left:
            busy = []
            for name, do in left:
                with claimed(self.folder / "locks" / name) as mine:
                    if mine:
                        do()
                    else:
                        busy.append((name, do))
            left = busy
            if left:
                time.sleep(_PAUSE)
                if not self._may_go_on():
                    raise OutOfTime

    def schedule(self) -> Iterator[tuple[Row, int, float | None]]:
        """(row, seed, rate) in the order of the runs; a rate of None is the best of the row's base."""
        for phase in PHASES:
            for seed in self.config.seeds:
                for name in phase:
                    yield self.rows[name], seed, None
        for seed in self.config.seeds:
            for name, rate in at_the_other_rate(self.results.data, self.config.finetuning.rates):
                yield self.rows[name], seed, rate

    def _spend(self) -> None:
        now = time.process_time()
        self.results.spend(now - self._began)
        self._began = now

    def _add(self, part: str, key: str, value: object) -> None:
        self._spend()
        self.results.add(part, key, value)
        self._on_step(f"{part} {key}: done, {self.results.data['seconds'] / 60:.1f} processor minutes so far")

    def _floor(self) -> None:
        """What the autoencoder loses of true labels, and what a guess that ignores the picture scores, by each kind of
        label: the mean over the training scenes, place by place."""
        for scheme in LABELS:
            self._floor_of(scheme, lambda data, s=scheme: (read_labels(data[s], self.autoencoder), None), scheme)
            self._floor_of(guess_key(scheme), lambda data, s=scheme: (self._mean_label(s, len(data["depth"])), None), scheme)
        self._floor_of("normals", lambda data: (None, read_normals(data["normal"], self.autoencoder)), "log")
        self._floor_of(guess_key("normals"), lambda data: (None, self._mean_normal(len(data["depth"]))), "log")

    def _floor_of(self, key: str, predict: Callable[[dict[str, Tensor]], Predicted], scheme: str) -> None:
        if not self.results.has("floor", key):
            data = self.sets.held_out
            self._add("floor", key, score(predict(data), data, scheme))

    def _mean_label(self, scheme: str, count: int) -> Tensor:
        """The mean label picture of the training scenes, `count` times."""
        fit = self.sets.scenes
        valid = fit["valid"].float()
        label = torch.stack([label_of(d, v > 0, scheme) for d, v in zip(fit["depth"], fit["valid"], strict=True)])
        return ((label * valid).sum(0) / valid.sum(0).clamp_min(1)).expand(count, -1, -1)

    def _mean_normal(self, count: int) -> Tensor:
        """The mean direction of each place of the training scenes, `count` times."""
        fit = self.sets.scenes
        facing = (fit["facing"] * fit["valid"].float()[..., None]).sum(0)
        return (facing / facing.norm(dim=-1, keepdim=True).clamp_min(1e-6)).expand(count, -1, -1, -1)

    def _base(self, kind: str, seed: int) -> Twin:
        """The pretrained editor or generator of a seed, or the fresh network that both began as."""
        twin = Twin(self.config.network, seed)
        if kind == SCRATCH:
            return twin
        folder, key = self.folder / "bases" / f"{kind}-{seed}", f"{kind}/{seed}"
        if finished(folder) and self.results.has("bases", key):
            load_state(weights_file(folder), twin, [])
            return twin.eval()
        about, data = self.config.pretraining, self.sets.pairs
        prompts = data["instruction" if kind == EDITOR else "caption"]

        def loss_of(step: int) -> Tensor:
            rng = np.random.default_rng([seed, 21, step])
            index = torch.from_numpy(rng.choice(len(prompts), min(about.batch, len(prompts)), replace=False))
            features = prompts[index]
            left_out = torch.from_numpy(rng.random(len(index)) < about.blank)
            features = torch.where(left_out[:, None], _blank(len(index)), features)
            source = data["source"][index] if kind == EDITOR else None
            seeds = [(seed, 22, step, i) for i in range(len(index))]
            return pretraining_loss(twin, source, data["target"][index], features, seeds)

        schedule = Schedule(about.steps, about.learning_rate, about.warmup, 0.01, about.save_every)
        losses = train(twin, loss_of, schedule, folder, self._may_go_on)
        if losses is None:
            raise OutOfTime
        self._add("bases", key, {"loss": losses, **self._own_work(twin, kind, seed)})
        return twin

    def _own_work(self, twin: Twin, kind: str, seed: int) -> dict[str, object]:
        """How well a base does what it was pretrained for, on pairs it has not seen."""
        data, steps = self.sets.test_pairs, self.config.finetuning.euler
        source = data["source"] if kind == EDITOR else None
        prompts = data["instruction" if kind == EDITOR else "caption"]
        with torch.inference_mode():
            made = answer(twin, source, data["target"], prompts, steps, seed)
            if seed == self.config.seeds[0]:
                self._show(f"base-{kind}", {"made": decode(self.autoencoder, made[: 2 * len(EDITS)])})
                for name in ("source", "target"):
                    self._show(f"pairs-{name}", {"made": decode(self.autoencoder, data[name][: 2 * len(EDITS)])})
        if kind == GENERATOR:
            return {}
        error = (made - data["target"]).square().mean((1, 2, 3))
        copied = (data["source"] - data["target"]).square().mean((1, 2, 3))
        by_edit = {name: [float(error[i :: len(EDITS)].mean()), float(copied[i :: len(EDITS)].mean())]
                   for i, name in enumerate(EDITS)}  # fmt: skip
        return {"edits": by_edit}

    def _show(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep pictures for the figures."""
        file = self.shown / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.part")
        save_file({key: value.detach().clone().float().contiguous() for key, value in tensors.items()}, temporary)
        temporary.replace(file)

    def _finetuned(self, row: Row, seed: int, rate: float, folder: Path) -> tuple[Twin, list[float]]:
        """An estimator made of a base, and its losses (all parts). Raises OutOfTime."""
        about, data = self.config.finetuning, self.sets.scenes
        twin = self._base(row.base, seed).train()
        depth = data["normal" if row.normals else row.labels]
        mask = data["normal_mask" if row.normals else "depth_mask"]
        tap = tap_single_block(twin.transformer, DispersiveConfig(block=self._middle())) if row.dispersive else None

        def loss_of(step: int) -> Tensor:
            rng = np.random.default_rng([seed, _ORDER, step])
            index = torch.from_numpy(rng.choice(len(depth), min(about.batch, len(depth)), replace=False))
            seeds = [(seed, _NOISE, step, i) for i in range(len(index))]
            with tap or nullcontext():
                left, right = flow_loss(
                    velocity_of_twin(twin), row.objective, data["image"][index], depth[index], data["normal"][index],
                    mask[index], data["normal_mask"][index], twin.conditioning(), seeds,
                )  # fmt: skip
            if tap is None:
                return left + right
            return left + right + about.dispersive * dispersive_loss(tap.take())

        schedule = Schedule(about.steps, rate, about.warmup, about.weight_decay, about.save_every)
        losses = train(twin, loss_of, schedule, folder, self._may_go_on)
        if tap is not None:
            tap.close()
        if losses is None:
            raise OutOfTime
        return twin, losses

    def _middle(self) -> int:
        """The single block that ends the first half of all blocks: where the release takes its features."""
        shape = self.config.network
        return max(0, (shape.double_blocks + shape.single_blocks) // 2 - shape.double_blocks - 1)

    def _sweep(self, base: str, rate: float) -> None:
        """One rate for one base, the same row and seed for all: the latent error of the validation scenes."""
        key = sweep_key(base, rate)
        if self.results.has("sweep", key):
            return
        row = replace(self.rows["id6"], base=base)
        folder = self.folder / "sweep" / key.replace("/", "-")
        twin, _ = self._finetuned(row, self.config.sweep_seed, rate, folder)
        data = self.sets.validation
        latents, _ = predict_latents_of(twin, row, data)
        self._add("sweep", key, latent_error(latents, data[row.labels], data["depth_mask"]))

    def _row(self, row: Row, seed: int, rate: float | None) -> None:
        """One line of the tables, and for the lines that the figures compare what their blocks know."""
        self._estimator(row, seed, rate)
        if row.name in ("id6", "id7"):
            self._features(row, seed, rate)

    def _estimator(self, row: Row, seed: int, rate: float | None) -> None:
        name = row.name if rate is None else at(row.name, rate)
        key = f"{name}/{seed}"
        if self.results.has("runs", key):
            return
        twin, losses = self._trained(row, seed, rate)
        data = self.sets.held_out
        depth, normal = predict_latents_of(twin, row, data)
        predicted = read(depth, normal, self.autoencoder)
        if seed == self.config.seeds[0] and rate is None:
            pictures = {name: part[[i for i in SHOWN if i < len(part)]]
                        for name, part in zip(("label", "normal"), predicted, strict=True) if part is not None}  # fmt: skip
            self._show(f"row-{row.name}", pictures)
        latent = {}
        if depth is not None:
            latent["depth"] = latent_error(depth, data[row.labels], data["depth_mask"])
        if normal is not None:
            latent["normal"] = latent_error(normal, data["normal"], data["normal_mask"])
        self._add("runs", key, {"scores": score(predicted, data, row.labels), "latent": latent, "loss": losses})

    def _trained(self, row: Row, seed: int, rate: float | None) -> tuple[Twin, list[float]]:
        """A row of the tables and its losses, from its folder when it is finished. Raises OutOfTime."""
        name = row.name if rate is None else at(row.name, rate)
        learned = best_rate(self.results.data, row.base) if rate is None else rate
        return self._finetuned(row, seed, learned, self.folder / "runs" / f"{name}-{seed}")

    def _features(self, row: Row, seed: int, rate: float | None) -> None:
        """What the blocks of a base knew before and know after fine-tuning by this row."""
        key = f"{row.base if rate is None else at(row.base, rate)}/{seed}"
        if self.results.has("features", key):
            return
        before = self._base(row.base, seed)
        after, _ = self._trained(row, seed, rate)
        fit = {key: value[:_PROBED] for key, value in self.sets.scenes.items()}
        test = self.sets.held_out
        ours = [[feature.block_features(twin.eval(), data["image"]) for data in (fit, test)] for twin in (before, after)]
        (fit_before, test_before), (fit_after, test_after) = ours
        labels = [feature.token_labels(self._true_labels(data), data["valid"]) for data in (fit, test)]
        found = feature.measure(test_before, test_after, fit_before, fit_after, labels[0], labels[1])
        if seed == self.config.seeds[0] and rate is None:
            height, width = test["image"].shape[-2:]
            maps = {
                name: [[feature.feature_map(f[scene, 0], height, width).tolist() for f in blocks] for scene in MAPS]
                for name, blocks in (("before", test_before), ("after", test_after))
            }
            self._add("maps", row.base, maps)
        self._add("features", key, found)

    def _true_labels(self, data: dict[str, Tensor]) -> Tensor:
        return torch.stack([label_of(d, v > 0, "log") for d, v in zip(data["depth"], data["valid"], strict=True)])


def _blank(count: int) -> Tensor:
    return blank().expand(count, -1)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]

