"""What the tests of geometry feed their subjects: labels of Eq. 7, noisy normals, planes, all from first
principles.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def eq7_label(depth, mask, bf16=False):
    """Label (H, W) in about [-1, 1] and the true log range between the 2 % and 98 % percentiles of valid
    pixels.
    """
    log = torch.log(depth.double().clamp_min(1e-9))
    valid = log[mask].sort().values
    low, high = (float(valid[round(q * (len(valid) - 1))]) for q in (0.02, 0.98))
    label = (2 * (log - low) / max(high - low, 1e-12) - 1).float()
    return (label.to(torch.bfloat16).float() if bf16 else label), high - low


def smooth_noise(height, width, scale, generator, channels=1):
    """(H, W, C) unit variance, correlated over about `scale` pixels."""
    rows, cols = height // scale + 4, width // scale + 4
    coarse = torch.randn(channels, 1, rows, cols, generator=generator)
    fine = F.interpolate(coarse, size=(rows * scale, cols * scale), mode="bicubic")[:, 0]
    fine = fine[:, scale : scale + height, scale : scale + width]
    return (fine / fine.std()).permute(1, 2, 0)


def noisy_normals(normal, degrees, seed, scale=64):
    """Normals (H, W, 3) with `degrees` of error (root mean square), half independent, half smooth over
    `scale`.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width, _ = normal.shape
    noise = torch.randn(height, width, 3, generator=generator) + smooth_noise(
        height, width, scale, generator, 3
    )
    noise = (
        noise / math.sqrt(2) * math.radians(degrees) / math.sqrt(2)
    )  # two tangent directions share the error
    noise = noise - (noise * normal).sum(-1, keepdim=True) * normal
    return F.normalize(normal + noise, dim=-1)


def weak_normals(normal, degrees, pull, seed):
    """Normals (H, W, 3) as a weak network gives them: wrong alike over a third of the picture, by `degrees`
    (root mean square), and drawn toward the camera by the fraction `pull`.
    """
    _, width, _ = normal.shape
    facing = torch.tensor([0.0, 0.0, -1.0])
    return F.normalize((1 - pull) * noisy_normals(normal, degrees, seed, width // 3) + pull * facing, dim=-1)


def weak_label(label, bend, seed):
    """Label (H, W) with a smooth error of standard deviation `bend` over a third of the picture."""
    height, width = label.shape
    generator = torch.Generator().manual_seed(seed)
    return label + bend * smooth_noise(height, width, width // 3, generator)[..., 0]


def plane(normal, fov, height, width, offset=3.0):
    """Depth (H, W), normals (H, W, 3), mask (H, W) of an infinite plane, by hand from the pinhole model."""
    n = torch.tensor(normal, dtype=torch.float64)
    n = n / n.norm()
    f = 0.5 * width / math.tan(math.radians(fov / 2))
    u = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) / f
    v = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) / f
    facing = n[0] * u[None, :] + n[1] * v[:, None] + n[2]
    depth = -offset / facing
    mask = (facing < -1e-2) & (depth > 0)
    return torch.where(mask, depth, 1.0).float(), n.float().expand(height, width, 3).contiguous(), mask


def gaussian_blur(picture, sigma):
    """(H, W) blurred with a Gaussian, replicated borders."""
    reach = int(3 * sigma) + 1
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma * sigma))
    kernel = kernel / kernel.sum()
    x = F.pad(picture[None, None].float(), (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[0, 0]


def bilateral(log_depth, mask, space, tone):
    """Depth (H, W) after a plain bilateral filter of ln depth (H, W): space in pixels, tone in units of ln depth."""
    total, weight = torch.zeros_like(log_depth), torch.zeros_like(log_depth)
    reach = int(2 * space)
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            other = torch.roll(log_depth, (down, across), (0, 1))
            near = math.exp(-(down * down + across * across) / (2 * space * space))
            w = near * torch.exp(-((other - log_depth) ** 2) / (2 * tone * tone))
            w = w * torch.roll(mask, (down, across), (0, 1))
            total, weight = total + w * other, weight + w
    return torch.exp(total / weight.clamp_min(1e-9))


def damage(kind, log_depth, mask, log_range, seed):
    """Log depth (H, W) with one kind of damage, and where it is (H, W) bool.

    "shift": blocks moved in depth; "tilt": blocks turned; "relief": blocks with bumps that the normals lack;
    "edges": depth blurred beside jumps.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = log_depth.shape
    out, where = log_depth.clone(), torch.zeros_like(mask)
    if kind == "edges":
        low, high = (F.max_pool2d(s * log_depth[None, None], 3, 1, 1)[0, 0] * s for s in (-1, 1))
        band = ((high - low) > 0.05 * log_range).float()[None, None]
        near = F.max_pool2d(band, 2 * (width // 64) + 1, 1, width // 64)[0, 0] > 0
        out = torch.where(near, gaussian_blur(log_depth, width / 160), log_depth)
        return out, mask & near & ((out - log_depth).abs() > 0.03 * log_range)

    def uniform(low, high):
        return low + (high - low) * float(torch.rand(1, generator=generator))

    for _ in range(4):
        rows, cols = (int(uniform(width / 12, width / 5)) for _ in range(2))
        top, left = int(uniform(0, height - rows)), int(uniform(0, width - cols))
        block = (slice(top, top + rows), slice(left, left + cols))
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        if kind == "shift":
            change = uniform(0.08, 0.2) * (1 if uniform(-1, 1) > 0 else -1)
        elif kind == "tilt":
            angle = uniform(0, 2 * math.pi)
            ramp = math.cos(angle) * (2 * x / cols - 1) + math.sin(angle) * (2 * y / rows - 1)
            change = 0.12 * ramp
        else:
            change = 0.01 * torch.sin(80 * math.pi * x / width) * torch.sin(80 * math.pi * y / width)
        out[block] = log_depth[block] + change * log_range
        where[block] = True
    return out, where & mask


def roc_area(score, positive):
    """Area under the ROC curve: the chance that a positive scores above a negative (ties half)."""
    _values, place, count = torch.unique(score.double(), return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2)[place]
    ones, zeros = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def room_depth(position, yaw, height, width, fov=60.0, ball=None):
    """Depth (H, W) of a furnished room seen from `position` (3,) with the camera turned by `yaw` radians to
    the right.

    World: x right, y down, z forward, metres; the room reaches from (-3, -1.4, -2) to (3, 1.4, 7). `ball`
    is a centre (3,) in camera axes and a radius: something that moves with nobody's rules.
    """
    f = 0.5 * width / math.tan(math.radians(fov / 2))
    u = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) / f
    v = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) / f
    y, x = torch.meshgrid(v, u, indexing="ij")
    camera_rays = torch.stack([x, y, torch.ones_like(x)], -1)
    c, s = math.cos(yaw), math.sin(yaw)
    turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    rays = camera_rays @ turn.T
    origin = torch.tensor(position, dtype=torch.float64)

    def hit_sphere(rays, origin, centre, radius):
        to = torch.tensor(centre, dtype=torch.float64) - origin
        a, b = (rays * rays).sum(-1), rays @ to
        inside = b * b - a * (to @ to - radius**2)
        t = (b - inside.clamp_min(0).sqrt()) / a
        return torch.where((inside > 0) & (t > 0.05), t, math.inf)

    low, high = (torch.tensor(p, dtype=torch.float64) for p in ((-3.0, -1.4, -2.0), (3.0, 1.4, 7.0)))
    away = torch.where(rays > 0, high - origin, low - origin)
    depth = torch.where(rays.abs() > 1e-9, away / rays, torch.full_like(rays, math.inf)).amin(-1)
    furniture = [
        ((-1.6, 0.8, 3.5), 0.6),
        ((1.5, 0.9, 4.5), 0.5),
        ((0.4, 0.2, 5.5), 0.8),
        ((2.0, -0.6, 3.0), 0.4),
    ]
    for centre, radius in furniture:
        depth = torch.minimum(depth, hit_sphere(rays, origin, centre, radius))
    if ball is not None:
        depth = torch.minimum(depth, hit_sphere(camera_rays, torch.zeros(3, dtype=torch.float64), *ball))
    return depth


def spoiled_depth(depth, mask, seed):
    """Depth (H, W) with a smooth error over a fifth of the picture and noise beside jumps, in parts of the
    log range: 2.5 % and 3 % (standard deviations). Jumps are where ln depth changes by over 5 % of the
    range between neighbours.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = depth.shape
    _, log_range = eq7_label(depth, mask)
    log = torch.log(depth.clamp_min(1e-3))
    error = 0.025 * log_range * smooth_noise(height, width, width // 5, generator)[..., 0]
    low, high = (F.max_pool2d(s * log[None, None], 3, 1, 1)[0, 0] * s for s in (-1, 1))
    band = F.max_pool2d(((high - low) > 0.05 * log_range).float()[None, None], 5, 1, 2)[0, 0]
    return depth * torch.exp(
        error + 0.03 * log_range * band * torch.randn(height, width, generator=generator)
    )
