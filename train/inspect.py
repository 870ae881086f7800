"""`python -m train inspect`: read a configuration's datasets, say what is wrong with them, draw samples."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from train.data.derived_normals import derive_normals
from train.data.frame import BadFrame, Frame, RejectedFrame, Source
from train.data.settings import load_data_config
from train.data.sheet import draw_sheet

_SUSPICIOUS_DEGREES = 25.0
_SHOWN = 20


@dataclass
class _Report:
    """What was seen of one dataset."""

    read: int = 0
    rejected: int = 0
    bad: list[str] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    depth: list[tuple[float, float]] = field(default_factory=list)
    disagreement: list[float] = field(default_factory=list)
    samples: list[Frame] = field(default_factory=list)


def disagreement_degrees(frame: Frame) -> float | None:
    """Median angle between a frame's normals and those of its depth: large when axes or units are mixed up."""
    derived, found = derive_normals(frame.depth.numpy(), frame.valid.numpy(), frame.intrinsics.numpy())
    both = torch.from_numpy(found) & frame.normal_valid
    if not bool(both.any()):
        return None
    cosine = (frame.normal[both] * torch.from_numpy(derived)[both]).sum(-1).clamp(-1, 1)
    return float(torch.rad2deg(torch.acos(cosine)).median())


def _try(source: Source, index: int) -> Frame | BadFrame:
    try:
        return source.read(index)
    except BadFrame as error:
        return error
    except OSError as error:
        return BadFrame(str(error))


def _chosen(source: Source, count: int, everything: bool, seed: int) -> Iterator[int]:
    if source.length is None:
        return iter(range(count))
    if everything:
        return iter(range(source.length))
    return iter(np.random.default_rng(seed).permutation(source.length)[: 4 * count].tolist())


def inspect_source(source: Source, samples: int, everything: bool, seed: int, workers: int) -> _Report:
    """Read `samples` good pictures of a dataset, or everything; nothing that is wrong with a file stops it."""
    report = _Report()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        chosen = _chosen(source, samples, everything, seed)
        while batch := [index for _, index in zip(range(max(1, workers)), chosen, strict=False)]:
            for found in pool.map(lambda index: _try(source, index), batch):
                if isinstance(found, RejectedFrame):
                    report.rejected += 1
                elif isinstance(found, BadFrame):
                    report.bad.append(str(found))
                else:
                    _note(report, found, samples)
            if not everything and report.read >= samples:
                break
    return report


def _note(report: _Report, frame: Frame, samples: int) -> None:
    report.read += 1
    report.valid.append(float(frame.valid.float().mean()))
    if bool(frame.valid.any()):
        near, far = np.percentile(frame.depth[frame.valid].numpy(), (2, 98))
        report.depth.append((float(near), float(far)))
    if len(report.samples) < samples:
        report.samples.append(frame)
        angle = disagreement_degrees(frame)
        if angle is not None:
            report.disagreement.append(angle)


def _describe(name: str, source: Source, report: _Report) -> list[str]:
    length = "endless" if source.length is None else f"{source.length} pictures"
    lines = [f"{name}: {length}, given out at {source.size[0]}x{source.size[1]}"]
    lines.append(
        f"  read {report.read}, left out by the dataset's rules {report.rejected}, bad {len(report.bad)}"
    )
    if report.depth:
        near, far = min(n for n, _ in report.depth), max(f for _, f in report.depth)
        lines.append(
            f"  depth (2 % to 98 %) from {near:.3g} m to {far:.3g} m; valid pixels "
            f"{np.mean(report.valid):.1%}"
        )
    if report.disagreement:
        angle = float(np.median(report.disagreement))
        lines.append(f"  normals against depth: median {angle:.1f} degrees")
        if angle > _SUSPICIOUS_DEGREES:
            lines.append(
                "  WARNING: normals and depth disagree; check the axes of the normals, the camera and the "
                "kind of depth"
            )
    lines += [f"  bad: {problem}" for problem in report.bad[:_SHOWN]]
    if len(report.bad) > _SHOWN:
        lines.append(f"  and {len(report.bad) - _SHOWN} more bad ones")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--config", required=True, help="TOML file with a [data] table (train/data/settings.py shows one)"
    )
    parser.add_argument("--output", default="sheet.png", help="PNG to draw samples on (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=6, help="pictures of each dataset (default: %(default)s)"
    )
    parser.add_argument(
        "--all", action="store_true", help="read every picture of every dataset that has an end"
    )
    parser.add_argument("--dry-run", action="store_true", help="open and count the datasets, read no picture")


def run(arguments: argparse.Namespace) -> int:
    """Returns 1 when a picture was bad or a dataset gave none, else 0."""
    config = load_data_config(arguments.config)
    mixture = config.open()
    if arguments.dry_run:
        for source, weight in zip(mixture.sources, mixture.weights, strict=True):
            length = "endless" if source.length is None else f"{source.length} pictures"
            print(f"{source.name}: {length}, {source.size[0]}x{source.size[1]}, {weight:.0%} of the batches")
        return 0
    samples: list[Frame] = []
    wrong = False
    for source in mixture.sources:
        report = inspect_source(source, max(1, arguments.samples), arguments.all, config.seed, config.workers)
        print("\n".join(_describe(source.name, source, report)))
        samples += report.samples
        wrong |= bool(report.bad) or not report.read
    if samples:
        draw_sheet(samples, arguments.output)
        print(f"samples drawn on {arguments.output}: picture, depth (near is red), normals (OpenGL colours)")
    return int(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """The verb on its own."""
    parser = argparse.ArgumentParser(prog="python -m train inspect", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))
