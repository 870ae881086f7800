"""How good an estimator of the study is on scenes it has never seen, and how good its bases are at their own work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fe2e_core.geometry import normal_from_network
from fe2e_core.metrics import abs_rel, align_disparity, align_linear, align_log, angular_error_deg, delta
from fe2e_core.quantization import decode as decode_label
from fe2e_core.quantization import percentile_range
from train.backend import decode, velocity_of
from train.flow import sample
from train.precision import fast_autocast
from train.thesis.network import Twin
from train.thesis.pictures import EXACT, domain_of
from train.thesis.rows import Row
from train.thesis.worlds import DOMAINS, FARTHEST, NEAREST

_BATCH = 32
_NEAR, _FAR = 1.0, 20.0
_NOISE_SEED = 900

Predicted = tuple[Tensor | None, Tensor | None]
"""Label pictures (N,H,W) in [-1,1] and unit OpenCV normals (N,H,W,3); None where a row has none."""


def velocity_of_twin(twin: Twin) -> Callable[..., Tensor]:
    """The twin's transformer behind the protocol of `fe2e_core.packing`."""
    return velocity_of(twin.transformer)


def predict_latents_of(twin: Twin, row: Row, data: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """(depth, normal) latents (N,16,h,w) of all pictures of a set, None where a row has none. Noise, where a row starts
    from it, is the picture's own."""
    lefts, rights = [], []
    for begin in range(0, len(data["image"]), _BATCH):
        image = data["image"][begin : begin + _BATCH]
        seeds = [(_NOISE_SEED, begin + i) for i in range(len(image))]
        with torch.inference_mode(), fast_autocast():
            left, right = sample(velocity_of_twin(twin), row.objective, image, twin.conditioning(), seeds)
        lefts.append(left.float())
        if right is not None:
            rights.append(right.float())
    if row.normals:
        return None, torch.cat(lefts)
    return torch.cat(lefts), torch.cat(rights) if rights else None


def read(depth: Tensor | None, normal: Tensor | None, autoencoder: AutoencoderKL) -> Predicted:
    """Latents as what they are pictures of."""
    return (
        None if depth is None else read_labels(depth, autoencoder),
        None if normal is None else read_normals(normal, autoencoder),
    )


def latent_error(predicted: Tensor, target: Tensor, mask: Tensor) -> float:
    """Mean square over the latents (N,16,h,w) that count by mask (N,1,h,w): the training loss on other pictures, where
    the decoder has no say."""
    return float(((predicted - target).square() * mask).sum() / (mask.sum() * target.shape[1]))


def _decoded(latents: Tensor, autoencoder: AutoencoderKL) -> Tensor:
    with torch.inference_mode():
        return torch.cat([decode(autoencoder, part) for part in latents.split(_BATCH)]).clamp(-1, 1)


def read_labels(latents: Tensor, autoencoder: AutoencoderKL) -> Tensor:
    """(N,16,h,w) -> (N,H,W): the mean of three channels, as the release reads it."""
    return _decoded(latents, autoencoder).mean(1)


def read_normals(latents: Tensor, autoencoder: AutoencoderKL) -> Tensor:
    """(N,16,h,w) -> (N,H,W,3) unit, OpenCV."""
    return normal_from_network(_decoded(latents, autoencoder).permute(0, 2, 3, 1))


def aligned_depth(label: Tensor, depth: Tensor, valid: Tensor, scheme: str) -> Tensor:
    """Depth (H,W) in metres: the label fitted to the truth by two numbers, each scheme in its own quantity, as its
    literature does: metres for uniform labels, 1/m, ln m, or the square root."""
    share = (label.double() + 1) / 2
    if scheme == "log":
        return align_log(label, depth, valid, NEAREST, FARTHEST).depth
    if scheme == "inverse":
        return align_disparity(share, depth, valid, NEAREST, FARTHEST).depth
    if scheme == "sqrt":
        root = align_linear(share, depth.sqrt(), valid).depth
        return root.clamp_min(0).square().clamp(NEAREST, FARTHEST)
    return align_linear(share, depth, valid, NEAREST, FARTHEST).depth


def ranged_depth(label: Tensor, depth: Tensor, valid: Tensor, scheme: str) -> Tensor:
    """Depth (H,W) in metres: the label read back through the scene's true percentiles, for every scheme the same
    two numbers and no fit."""
    span = percentile_range(depth, valid, "uniform" if scheme == EXACT else scheme)
    return decode_label(label, span).clamp(NEAREST, FARTHEST)


def depth_scores(labels: Tensor, data: dict[str, Tensor], scheme: str) -> dict[str, dict[str, float]]:
    """domain -> means over its pictures: abs_rel and delta1 by both readings ("range_..." by the true percentiles),
    and AbsRel by the latter of the pixels nearer than 1 m ("near") and beyond 20 m ("far")."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in DOMAINS}
    for number in range(len(labels)):
        depth, valid = data["depth"][number], data["valid"][number] > 0
        ours = found[domain_of(number)]

        def put(key: str, value: float, into: dict[str, list[float]] = ours) -> None:
            into.setdefault(key, []).append(value)

        fitted = aligned_depth(labels[number], depth, valid, scheme)
        put("abs_rel", abs_rel(fitted, depth, valid))
        put("delta1", delta(fitted, depth, valid))
        ranged = ranged_depth(labels[number], depth, valid, scheme)
        put("range_abs_rel", abs_rel(ranged, depth, valid))
        put("range_delta1", delta(ranged, depth, valid))
        for key, some in (("near", valid & (depth < _NEAR)), ("far", valid & (depth > _FAR))):
            if bool(some.any()):
                put(key, abs_rel(ranged, depth, some))
    return {domain: _means(values) for domain, values in found.items()}


def normal_scores(normals: Tensor, data: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """domain -> mean angle in degrees and share within 11.25 degrees, means over its pictures."""
    found: dict[str, dict[str, list[float]]] = {name: {"angle": [], "within": []} for name in DOMAINS}
    for number in range(len(normals)):
        valid = data["valid"][number] > 0
        errors = angular_error_deg(normals[number], data["facing"][number])[valid]
        found[domain_of(number)]["angle"].append(float(errors.mean()))
        found[domain_of(number)]["within"].append(float((errors < 11.25).double().mean()))
    return {domain: _means(values) for domain, values in found.items()}


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    return {key: sum(v) / len(v) for key, v in values.items() if v}


def score(predicted: Predicted, data: dict[str, Tensor], scheme: str) -> dict[str, dict[str, float]]:
    """domain -> all scores of one estimator, and "all": their means over the domains."""
    labels, normals = predicted
    result: dict[str, dict[str, float]] = {name: {} for name in DOMAINS}
    for part in (
        depth_scores(labels, data, scheme) if labels is not None else {},
        normal_scores(normals, data) if normals is not None else {},
    ):
        for domain, values in part.items():
            result[domain] |= values
    keys = set.intersection(*(set(values) for values in result.values()))
    result["all"] = {key: sum(result[domain][key] for domain in DOMAINS) / len(DOMAINS) for key in sorted(keys)}
    return result
