"""What the blocks know (paper, Fig. 3): features of the answer's half behind three blocks, and measures of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.dispersive import FeatureTap
from train.flow import run_halves
from train.precision import fast_autocast
from train.thesis.network import Twin
from train.thesis.scoring import velocity_of_twin

BLOCKS = ("input", "middle", "output")
_RIDGE = 1e-2
_BATCH = 64


def tapped_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The block at the input end, one in the middle and the last one."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    return [blocks[0], blocks[len(blocks) // 2], blocks[-1]]


def block_features(twin: Twin, image: Tensor) -> list[Tensor]:
    """Features (N,2,n,width) behind each of `BLOCKS` of pictures (N,16,h,w): the answer's half from the zero start, and
    the picture's half; n tokens each."""
    taps = [FeatureTap(block) for block in tapped_blocks(twin.transformer)]
    tokens = image.shape[2] * image.shape[3] // 4
    found: list[list[Tensor]] = [[] for _ in taps]
    try:
        for part in image.split(_BATCH):
            with torch.inference_mode(), fast_autocast(), taps[0], taps[1], taps[2]:
                run_halves(
                    velocity_of_twin(twin), torch.zeros_like(part), part, torch.ones(len(part)), twin.conditioning()
                )
            for tap, into in zip(taps, found, strict=True):
                features = tap.take()[:, -2 * tokens :].float()  # text tokens come first
                into.append(features.unflatten(1, (2, tokens)))
    finally:
        for tap in taps:
            tap.close()
    return [torch.cat(parts) for parts in found]


def token_labels(label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Label pictures (N,H,W) and valid (N,H,W) -> the mean label of each token's 16x16 valid pixels (N,n), and which
    tokens have at least half of them (N,n) bool."""
    weight = valid.float()[:, None]
    share = F.avg_pool2d(weight, 16)
    mean = F.avg_pool2d(label[:, None] * weight, 16) / share.clamp_min(1e-6)
    return mean.flatten(1), (share >= 0.5).flatten(1)


def probe(fit: Tensor, fit_label: Tensor, fit_counts: Tensor, test: Tensor, label: Tensor, counts: Tensor) -> float:
    """How much of the depth a linear reading of features explains on new pictures: 1 - squared error / that of the mean
    of each place. Features (N,n,width), labels and counts (N,n). At most 1; 0 is no more than the place tells."""
    fit, test = fit.double(), test.double()
    centre = fit.mean(0)
    scale = (fit - centre).flatten(0, 1).std(0).clamp_min(1e-6)
    weight = fit_counts.double()
    place = (fit_label.double() * weight).sum(0) / weight.sum(0).clamp_min(1)
    x = ((fit - centre) / scale)[fit_counts]
    y = (fit_label.double() - place)[fit_counts]
    penalty = _RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    truth = (label.double() - place)[counts]
    error = truth - ((test - centre) / scale)[counts] @ solution
    return 1 - float(error.square().sum() / truth.square().sum())


def similarity(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two sets of features (N,n,width) of the same pictures, each place centred: 1 when one is a rotation
    of the other, 0 when they have nothing in common."""
    x, y = ((f - f.mean(0)).flatten(0, 1).double() for f in (a, b))
    cross = (x.T @ y).square().sum()
    return float(cross / ((x.T @ x).square().sum() * (y.T @ y).square().sum()).sqrt().clamp_min(1e-30))


def feature_map(features: Tensor, height: int, width: int) -> Tensor:
    """Tokens (n,width) -> (height,width): rearranged to the latent's size, then the norm over channels (paper, B.2)."""
    rows, columns = height // 2, width // 2
    patches = features.reshape(rows, columns, -1, 2, 2).permute(2, 0, 3, 1, 4).reshape(-1, height, width)
    return patches.square().sum(0).sqrt()


def measure(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    fit_before: Sequence[Tensor],
    fit_after: Sequence[Tensor],
    fit_label: tuple[Tensor, Tensor],
    label: tuple[Tensor, Tensor],
) -> dict[str, list[float]]:
    """Per block of `BLOCKS`: `probe_before`, `probe_after` and `kept`, the similarity of the two, of the answer's half;
    and `picture_before`, `picture_after`, the probes of the picture's half."""
    names = ("probe_before", "probe_after", "kept", "picture_before", "picture_after")
    result: dict[str, list[float]] = {name: [] for name in names}
    for b, a, fb, fa in zip(before, after, fit_before, fit_after, strict=True):
        result["probe_before"].append(probe(fb[:, 0], *fit_label, b[:, 0], *label))
        result["probe_after"].append(probe(fa[:, 0], *fit_label, a[:, 0], *label))
        result["picture_before"].append(probe(fb[:, 1], *fit_label, b[:, 1], *label))
        result["picture_after"].append(probe(fa[:, 1], *fit_label, a[:, 1], *label))
        result["kept"].append(similarity(b[:, 0], a[:, 0]))
    return result
