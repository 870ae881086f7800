"""`train.scenes.render` for a batch of worlds on any device: every ray against every shape in one expression.

The formulas are those of `train.primitives`, `train.textures` and `train.scenes`, with axes (B, P, N): worlds, shapes,
rays. They are written out by components, without matrix products, so that a compiler makes one kernel of them that
keeps nothing of the (B, P, N) values. `tests/train/test_online_raycast.py` holds both renderers against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from train.online.noise import noise, noise_table
from train.online.packing import BOX, CYLINDER, ELLIPSOID, HILLS, MAX_LAMPS, NOTHING, Worlds
from train.primitives import EPSILON, FAR_STEP, HALVINGS, MISS, NEAR_STEP, STEPS
from train.textures import PATTERNS

Vector = tuple[Tensor, Tensor, Tensor]
_SURFACE = 2e-3
_FACING = (0.0, 0.0, -1.0)
_P = {name: number for number, name in enumerate(PATTERNS)}


@dataclass(frozen=True)
class Pictures:
    """B rendered scenes: `image` (B,3,H,W) sRGB in [0,1]; `depth` (B,H,W) planar z in metres, 0 where not valid;
    `normal` (B,3,H,W) unit, OpenCV camera axes; `valid` (B,H,W) bool.
    """

    image: Tensor
    depth: Tensor
    normal: Tensor
    valid: Tensor


def _parts(vectors: Tensor) -> Vector:
    return vectors[..., 0], vectors[..., 1], vectors[..., 2]


def _dot(a: Vector, b: Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _to_world(rotation: tuple[Tensor, ...], v: Vector) -> Vector:
    r = rotation
    return (r[0] * v[0] + r[1] * v[1] + r[2] * v[2], r[3] * v[0] + r[4] * v[1] + r[5] * v[2],
            r[6] * v[0] + r[7] * v[1] + r[8] * v[2])


def _to_local(rotation: tuple[Tensor, ...], v: Vector) -> Vector:
    r = rotation
    return (r[0] * v[0] + r[3] * v[1] + r[6] * v[2], r[1] * v[0] + r[4] * v[1] + r[7] * v[2],
            r[2] * v[0] + r[5] * v[1] + r[8] * v[2])


def _first_root(direction: tuple[Tensor, ...], start: tuple[Tensor, ...], radius: Tensor | float) -> Tensor:
    a = sum(d * d for d in direction)
    ratio = sum(d * s for d, s in zip(direction, start, strict=True)) / a
    foot = [s - ratio * d for s, d in zip(start, direction, strict=True)]
    inside = radius * radius - sum(f * f for f in foot)
    root = (inside.clamp_min(0) / a).sqrt()
    near, far = -ratio - root, -ratio + root
    t = torch.where(near > EPSILON, near, far)
    return torch.where((inside > 0) & (t > EPSILON), t, MISS)


def distances(worlds: Worlds, origin: Vector, direction: Vector) -> Tensor:
    """Ray parameter of the first hit of each shape, (B,P,N); infinity on a miss. origin (B,1 or N), direction (B,N)."""
    rotation = tuple(worlds.rotation[..., i, None] for i in range(9))
    centre, size = (_parts(v[..., None, :]) for v in (worlds.centre, worlds.size))
    kind = worlds.kind[..., None]
    start = _to_local(rotation, _minus(tuple(o[:, None] for o in origin), centre))
    ray = _to_local(rotation, tuple(d[:, None] for d in direction))

    plane = -start[1] / ray[1]
    plane = torch.where(plane > EPSILON, plane, MISS)

    inverse = tuple(1 / r for r in ray)
    first = tuple((-h - s) * i for h, s, i in zip(size, start, inverse, strict=True))
    second = tuple((h - s) * i for h, s, i in zip(size, start, inverse, strict=True))
    near, far = (
        torch.maximum(torch.maximum(*(torch.minimum(first[k], second[k]) for k in (0, 1))), torch.minimum(first[2], second[2])),
        torch.minimum(torch.minimum(*(torch.maximum(first[k], second[k]) for k in (0, 1))), torch.maximum(first[2], second[2])),
    )
    box = torch.where(near > EPSILON, near, far)
    box = torch.where((near <= far) & (box > EPSILON), box, MISS)

    by_size = tuple(r / h for r, h in zip(ray, size, strict=True)), tuple(s / h for s, h in zip(start, size, strict=True))
    ellipsoid = _first_root(*by_size, 1.0)

    radius, half = size[0], size[1]
    cylinder = _first_root((ray[0], ray[2]), (start[0], start[2]), radius)
    cylinder = torch.where((start[1] + cylinder * ray[1]).abs() <= half, cylinder, MISS)
    for sign in (-1, 1):
        t = (sign * half - start[1]) / ray[1]
        x, z = start[0] + t * ray[0], start[2] + t * ray[2]
        cylinder = torch.minimum(cylinder, torch.where((x * x + z * z <= radius * radius) & (t > EPSILON), t, MISS))

    t = torch.where(kind == BOX, box, torch.where(kind == ELLIPSOID, ellipsoid, torch.where(kind == CYLINDER, cylinder, plane)))
    return torch.where(kind == NOTHING, MISS, t)


def first_hit(worlds: Worlds, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """Ray parameter and number of the first shape along each ray, both (B,N)."""
    return torch.min(distances(worlds, origin, direction), dim=1)


def blocked(worlds: Worlds, start: Vector, towards: Vector, ends: Tensor) -> Tensor:
    """Whether a shape that casts shadows lies before the parameter `ends` (B,1); (B,N) bool."""
    t = torch.where(worlds.casts[..., None], distances(worlds, start, towards), MISS)
    return t.amin(1) < ends


def hill_height(table: Tensor, hills: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """`train.primitives.hill_height` of (B,...) points; hills (B,3)."""
    amplitude, scale, seed = (hills[:, i].reshape(-1, *[1] * (x.dim() - 1)) for i in range(3))
    seed, zero = seed.to(torch.int64), torch.zeros_like(x)
    large = noise(table, x / scale, zero, z / scale, seed)
    return amplitude * (0.75 * large + 0.25 * noise(table, x / scale * 2.9, zero, z / scale * 2.9, seed + 1))


def above_hills(table: Tensor, hills: Tensor, origin: Vector, direction: Vector, t: Tensor) -> Tensor:
    """Metres above the hills at parameter `t` of the rays; (B,N)."""
    x, y, z = (o + d * t for o, d in zip(origin, direction, strict=True))
    return -y - hill_height(table, hills, x, z)


def first_below(table: Tensor, hills: Tensor, origin: Vector, direction: Vector, places: Tensor) -> Tensor:
    """Number (B,N) of the first of `places` (STEPS,) that is below ground; STEPS where none is."""
    wide = tuple(o[:, None] for o in origin), tuple(d[:, None] for d in direction)
    below = above_hills(table, hills, *wide, places[None, :, None]) < 0
    numbers = torch.arange(STEPS, device=hills.device)[None, :, None]
    return torch.where(below, numbers, STEPS).amin(1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values (B,P), index (B,N) -> (B,N)."""
    return values.gather(1, index)


def surface(worlds: Worlds, index: Tensor, point: Vector) -> tuple[Vector, Vector]:
    """(outward normals, object coordinates) of points on the shapes `index` (B,N); of hills neither."""
    shape = index.clamp_max(HILLS - 1)
    rotation = tuple(_pick(worlds.rotation[..., i], shape) for i in range(9))
    centre, size = (tuple(_pick(v[..., i], shape) for i in range(3)) for v in (worlds.centre, worlds.size))
    kind = _pick(worlds.kind, shape)
    local = _to_local(rotation, _minus(point, centre))
    x, y, z = (v / h for v, h in zip(local, size, strict=True))
    ax, ay, az = x.abs(), y.abs(), z.abs()
    on_x = (ax >= ay) & (ax >= az)
    on_y = ~on_x & (ay >= az)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    box = (torch.where(on_x, x.sign(), zero), torch.where(on_y, y.sign(), zero), torch.where(on_x | on_y, zero, z.sign()))
    gradient = tuple(v / (h * h) for v, h in zip(local, size, strict=True))
    length = _dot(gradient, gradient).sqrt().clamp_min(1e-12)
    ellipsoid = tuple(v / length for v in gradient)
    radius, half = size[0], size[1]
    cap = local[1].abs() / half >= (local[0].square() + local[2].square()).sqrt() / radius
    cylinder = (torch.where(cap, zero, local[0] / radius), torch.where(cap, local[1].sign(), zero),
                torch.where(cap, zero, local[2] / radius))
    plane = (zero, -one, zero)
    chosen = tuple(
        torch.where(kind == BOX, b, torch.where(kind == ELLIPSOID, e, torch.where(kind == CYLINDER, c, p)))
        for b, e, c, p in zip(box, ellipsoid, cylinder, plane, strict=True)
    )
    return _to_world(rotation, chosen), local


def hill_normal(table: Tensor, hills: Tensor, x: Tensor, z: Tensor) -> Vector:
    step = 0.01 * hills[:, 1:2].clamp_min(1e-3)
    slope_x = (hill_height(table, hills, x + step, z) - hill_height(table, hills, x - step, z)) / (2 * step)
    slope_z = (hill_height(table, hills, x, z + step) - hill_height(table, hills, x, z - step)) / (2 * step)
    length = (slope_x.square() + 1 + slope_z.square()).sqrt()
    return -slope_x / length, -1 / length, -slope_z / length


def albedo(table: Tensor, worlds: Worlds, index: Tensor, local: Vector) -> Vector:
    """Linear RGB of the shapes' textures (B,N): `Texture.colour` for every pattern at once."""
    pattern, seed = _pick(worlds.pattern, index), _pick(worlds.texture_seed, index)
    scale = _pick(worlds.scale, index)
    x, y, z = (v * scale + _pick(worlds.offset[..., i], index) for i, v in enumerate(local))
    axis = (x, y, z)

    def along(number: Tensor) -> Tensor:
        return torch.where(number == 0, x, torch.where(number == 1, y, z))

    is_speckle, is_marble, is_bricks = (pattern == _P[name] for name in ("speckle", "marble", "bricks"))
    row = torch.floor(y * 2)
    brick = x + z + 0.5 * row.remainder(2)
    # One evaluation serves all patterns that need noise, each at its own place.
    factor = torch.where(is_speckle, 9.0, torch.where(is_marble, 1.3, 1.0))
    at = (torch.where(is_bricks, torch.floor(brick) + 0.5, x * factor), torch.where(is_bricks, row + 0.5, y * factor),
          torch.where(is_bricks, 0.5, z * factor))
    rough = noise(table, *at, seed)
    fine = noise(table, x * 2.7, y * 2.7, z * 2.7, seed + 1)
    stripe = along(seed % 3) + torch.where(seed % 2 == 1, 0.5 * along((seed + 1) % 3), 0.0)
    edge = tuple((v.remainder(1) - 0.5).abs() for v in axis)
    middle = torch.maximum(torch.minimum(edge[0], edge[1]), torch.minimum(torch.maximum(edge[0], edge[1]), edge[2]))
    mortar = (brick.remainder(1) < 0.06) | ((y * 2).remainder(1) < 0.12)
    a, b = along(seed % 3), along((seed + 1) % 3)
    offset = tuple(v.remainder(1) - 0.5 for v in axis)
    values = {
        "solid": torch.zeros_like(x),
        "checker": (torch.floor(x) + torch.floor(y) + torch.floor(z)).remainder(2),
        "stripes": (stripe.remainder(1) > 0.2 + 0.1 * (seed % 5)).float(),
        "tiles": (middle > 0.46).float(),
        "bricks": torch.where(mortar, 1.0, 0.5 * rough),
        "noise": 0.6 * rough + 0.4 * fine,
        "marble": 0.5 + 0.5 * torch.sin(6 * (along(seed % 3) + 1.5 * rough)),
        "wood": (4 * ((a * a + b * b).sqrt() + 0.3 * rough)).remainder(1),
        "dots": (_dot(offset, offset) < 0.11).float(),
        "speckle": rough,
    }
    mix = values["solid"]
    for name, value in values.items():
        mix = torch.where(pattern == _P[name], value, mix)
    grain = _pick(worlds.grain, index)
    coarse = 1 + grain * (noise(table, *(v * 23 + 0.37 for v in local), seed + 7) - 0.5)
    low, high = (tuple(_pick(v[..., i], index) for i in range(3)) for v in (worlds.low, worlds.high))
    return tuple(((lo + (hi - lo) * mix) * coarse).clamp(0, 1) for lo, hi in zip(low, high, strict=True))


def lamp_light(worlds: Worlds, number: int, start: Vector, normal: Vector) -> tuple[Vector, Tensor, Tensor]:
    """(direction to the lamp, parameter at which the lamp is reached (B,1), Lambert's light without shadow (B,N))."""
    sun = worlds.sun[:, number, None]
    lamp = tuple(worlds.lamp[:, number, i, None] for i in range(3))
    towards = tuple(torch.where(sun, one, one - at) for one, at in zip(lamp, start, strict=True))
    reach = _dot(towards, towards).sqrt()
    strength = (_dot(normal, towards) / reach).clamp_min(0)
    strength = torch.where(sun, strength, strength / (0.3 + 0.25 * reach * reach))
    return towards, torch.where(sun, MISS, 1.0), strength


def sky(table: Tensor, worlds: Worlds, view: Vector) -> Vector:
    """Linear colour of the sky along the rays, of which `view` (B,N) is the negative direction, of length 1."""
    x, y, z = (-v for v in view)
    height = (-y).clamp(0, 1).sqrt()
    flat_x, flat_z, zero = x / (0.15 + height), z / (0.15 + height), torch.zeros_like(x)
    seed = worlds.seed[:, None]
    low = noise(table, 3 * flat_x + 50, zero + 50, 3 * flat_z + 50, seed % 9973)
    cloud = 0.6 * low + 0.4 * noise(table, 8 * flat_x, zero, 8 * flat_z, seed % 9967)
    cover = ((cloud - 0.5) * 4).clamp(0, 1) * worlds.air[:, :1]
    colours = []
    for i in range(3):
        colour = torch.lerp(worlds.horizon[:, i, None].expand_as(x), worlds.zenith[:, i, None].expand_as(x), height)
        colours.append(torch.lerp(colour, torch.full_like(colour, 0.95), cover))
    return tuple(colours)


def camera_rays(worlds: Worlds, height: int, width: int, window: Tensor | None = None) -> Vector:
    """Rays through pixel centres in world axes, z = 1 in camera axes; (B,N).

    window (B,3), where given: zoom (>= 1) and the place of the seen part in [-1, 1] across and down: pictures are then
    crops of larger ones, without being longer lenses (the centre of projection is elsewhere).
    """
    device = worlds.fov.device
    focal = 0.5 * max(height, width) / torch.tan(torch.deg2rad(worlds.fov) / 2)
    u = (torch.arange(width, device=device) + 0.5)[None, None, :] - width / 2
    v = (torch.arange(height, device=device) + 0.5)[None, :, None] - height / 2
    x, y = u / focal[:, None, None], v / focal[:, None, None]
    if window is not None:
        zoom, across, down = (window[:, i, None, None] for i in range(3))
        reach = (1 - 1 / zoom) / 2 / focal[:, None, None]
        x, y = x / zoom + across * reach * width, y / zoom + down * reach * height
    x, y = (w.expand(-1, height, width).flatten(1) for w in (x, y))
    return _to_world(tuple(worlds.camera[:, i, None] for i in range(9)), (x, y, torch.ones_like(x)))


def _compiled(function: Callable) -> Callable:
    """One kernel of it, compiled once for every number of rays."""
    kernel = torch.compile(function)

    def call(worlds: Worlds, origin: Vector, direction: Vector, *ends: Tensor):
        for value in (*origin, *direction):
            if value.shape[1] > 1:
                torch._dynamo.mark_dynamic(value, 1)
        return kernel(worlds, origin, direction, *ends)

    return call


class RayCaster:
    """Renders batches. With `compiled` all shapes are tried in one kernel, which keeps nothing of their distances."""

    def __init__(self, device: torch.device, compiled: bool = False, hills: int | None = None):
        """hills: how many worlds of a batch may have a height field; more are not valid. None: as many as there are."""
        self.device, self.most = device, hills
        self.table = noise_table(device)

        # The rest has no axis of shapes, and noise takes a compiler minutes.
        self._first_hit = _compiled(first_hit) if compiled else first_hit
        self._blocked = _compiled(blocked) if compiled else blocked

    @torch.no_grad()
    def __call__(self, worlds: Worlds, height: int, width: int, window: Tensor | None = None) -> Pictures:
        """`window`: see `camera_rays`."""
        rays = camera_rays(worlds, height, width, window)
        hills, left_out = self._hills(worlds, rays)
        image, depth, normal, valid = self._shade(worlds, rays, hills)
        valid[left_out] = False
        count = len(worlds)
        return Pictures(
            image.reshape(count, 3, height, width), depth.reshape(count, height, width),
            normal.reshape(count, 3, height, width), valid.reshape(count, height, width),
        )

    def _hills(self, worlds: Worlds, rays: Vector) -> tuple[Tensor, Tensor]:
        """(ray parameter of the height fields (B,N), worlds whose hills are left out)."""
        result = torch.full_like(rays[0], MISS)
        place = torch.nonzero(worlds.hills[:, 0] > 0)[:, 0]
        left_out = place[:0]
        if self.most is not None:  # always the same count, which a compiled kernel likes
            left_out = place[self.most :]
            place = torch.cat((place, torch.arange(self.most, device=self.device)))[: self.most]
        if not len(place):
            return result, left_out
        hills, there = worlds.hills[place], worlds.hills[place, :1] > 0
        hills = torch.where(there, hills, 1.0)
        eye, some = _parts(worlds.eye[place][:, None, :]), tuple(r[place] for r in rays)
        powers = torch.arange(STEPS + 1, device=self.device, dtype=torch.float64) / STEPS
        places = (NEAR_STEP * (FAR_STEP / NEAR_STEP) ** powers).float()
        number = first_below(self.table, hills, eye, some, places[1:])
        low, high = places[number.clamp_max(STEPS - 1)], places[(number + 1).clamp_max(STEPS)]
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            under = above_hills(self.table, hills, eye, some, middle) < 0
            low, high = torch.where(under, low, middle), torch.where(under, middle, high)
        result[place] = torch.where((number < STEPS) & there, high, MISS)
        return result, left_out

    def _shade(self, worlds: Worlds, direction: Vector, hills: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(image (B,3,N), depth, normal (B,3,N) in camera axes, valid (B,N)) of rays in world axes."""
        origin = _parts(worlds.eye[:, None, :])
        depth, index = self._first_hit(worlds, origin, direction)
        on_hills = hills < depth
        depth, index = torch.where(on_hills, hills, depth), torch.where(on_hills, HILLS, index)
        valid = depth <= worlds.air[:, 2:3]
        away = torch.where(valid, depth, 0.0)
        point = tuple(o + d * away for o, d in zip(origin, direction, strict=True))
        length = _dot(direction, direction).sqrt()
        view = tuple(-d / length for d in direction)
        normal, local = surface(worlds, index, point)
        if self.most is None or bool(on_hills.any()):
            ground = hill_normal(self.table, torch.where(worlds.hills[:, :1] > 0, worlds.hills, 1.0), point[0], point[2])
            normal = tuple(torch.where(on_hills, g, n) for g, n in zip(ground, normal, strict=True))
            local = tuple(torch.where(on_hills, p, v) for p, v in zip(point, local, strict=True))
        side = torch.where(_dot(normal, view) < 0, -1.0, 1.0)
        normal = tuple(n * side for n in normal)
        colour = albedo(self.table, worlds, index, local)
        lit = self._light(worlds, point, normal, view)
        fog = 1 - torch.exp(-worlds.air[:, 1:2] * away)
        behind = sky(self.table, worlds, view)
        image = []
        for i in range(3):
            seen = torch.lerp(colour[i] * lit[i], worlds.horizon[:, i, None].expand_as(fog), fog)
            linear = torch.where(valid, seen, behind[i]) * worlds.air[:, 3:4]
            image.append(linear.clamp(0, 1).pow(1 / 2.2))
        facing = _to_local(tuple(worlds.camera[:, i, None] for i in range(9)), normal)
        size = _dot(facing, facing).sqrt().clamp_min(1e-12)
        facing = torch.stack([torch.where(valid, f / size, s) for f, s in zip(facing, _FACING, strict=True)], 1)
        return torch.stack(image, 1), away, facing, valid

    def _light(self, worlds: Worlds, point: Vector, normal: Vector, view: Vector) -> Vector:
        """Light arriving at points (B,N), as `train.scenes` sums it: ambient, lamps with shadows, a little from the eye."""
        up = 0.45 + 0.55 * (0.5 - 0.5 * normal[1])
        total = [worlds.ambient[:, i, None] * up for i in range(3)]
        start = tuple(p + n * _SURFACE for p, n in zip(point, normal, strict=True))
        for number in range(MAX_LAMPS):
            towards, ends, strength = lamp_light(worlds, number, start, normal)
            strength = torch.where(self._blocked(worlds, start, towards, ends), 0.0, strength)
            total = [t + worlds.lamp_colour[:, number, i, None] * strength for i, t in enumerate(total)]
        head = 0.08 * _dot(normal, view).abs()
        return tuple(t + head for t in total)
