"""The mixture: proportions, one resolution a batch, exact resume, sharing among processes, bad files, flips,
masks.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

from fe2e_core.geometry import normals_from_depth
from train.data.augment import mirror
from train.data.frame import BadFrame, Frame, fit_frame, make_frame
from train.data.loader import Loader
from train.data.mixture import Mixture, MixtureSampler
from train.data.procedural import Procedural, ProceduralConfig
from train.data.settings import load_data_config
from train.objective import latent_mask


@dataclass
class Numbers:
    """Pictures whose depth is their number + 1; some files are bad."""

    name: str
    size: tuple[int, int]
    length: int | None
    bad: frozenset[int] = field(default_factory=frozenset)

    def files(self, index: int) -> list[str]:
        return [f"{index}.png"]

    def read(self, index: int) -> Frame:
        if index in self.bad:
            raise BadFrame(f"{self.name}/{index}.png: broken")
        ones = torch.ones(*self.size)
        facing = torch.tensor([0.0, 0.0, -1.0]).expand(*self.size, 3)
        return make_frame(
            facing.abs(), ones * (index + 1), facing, ones > 0, ones > 0, torch.eye(3), f"{self.name}/{index}"
        )


def mixture(seed: int = 5, bad: frozenset[int] = frozenset()) -> Mixture:
    return Mixture([Numbers("indoor", (32, 48), 50, bad), Numbers("street", (16, 64), 7)], [90, 10], seed)


def test_nine_batches_in_ten_come_from_the_first_dataset():
    sampler = MixtureSampler(mixture(), batch=4)
    chosen = [batch[0].source for _, batch in zip(range(2000), sampler, strict=False)]
    # three standard deviations of 2000 draws at 10 %
    assert abs(sum(chosen) / 2000 - 0.1) < 0.02


def test_a_batch_has_one_resolution_and_every_round_shows_every_picture_once():
    sampler = MixtureSampler(mixture(), batch=5)
    seen: dict[int, list[int]] = {0: [], 1: []}
    mirrored = 0
    for _, batch in zip(range(200), sampler, strict=False):
        assert len({draw.source for draw in batch}) == 1
        seen[batch[0].source] += [draw.index for draw in batch]
        mirrored += sum(draw.mirrored for draw in batch)
    for source, length in ((0, 50), (1, 7)):
        rounds = [seen[source][i : i + length] for i in range(0, len(seen[source]) - length, length)]
        assert len(rounds) > 2
        assert all(sorted(one) == list(range(length)) for one in rounds)
        assert rounds[0] != rounds[1]
    assert 400 < mirrored < 600


def test_state_resumes_exactly_through_json():
    sampler = MixtureSampler(mixture(), batch=3)
    for _ in range(37):
        sampler.next_batch()
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = [sampler.next_batch() for _ in range(100)]
    resumed = MixtureSampler(mixture(), batch=3)
    resumed.load_state_dict(state)
    assert [resumed.next_batch() for _ in range(100)] == expected
    for other in (MixtureSampler(mixture(seed=6), batch=3), MixtureSampler(mixture(), batch=6)):
        with pytest.raises(ValueError, match="other data"):
            other.load_state_dict(state)


def test_processes_share_the_global_batch():
    whole = MixtureSampler(mixture(), batch=6)
    parts = [MixtureSampler(mixture(), batch=6, rank=rank, ranks=3) for rank in range(3)]
    for _ in range(20):
        assert [draw for part in parts for draw in part.next_batch()] == whole.next_batch()
    with pytest.raises(ValueError, match="multiple"):
        MixtureSampler(mixture(), batch=4, ranks=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_resumes_after_the_last_batch_it_gave(workers):
    source = Procedural(ProceduralConfig(32, 48))
    both = Mixture([source, Numbers("street", (16, 64), 7)], [1, 1], 1)
    loader = Loader(both, MixtureSampler(both, 2), workers)
    expected = []
    for batch in loader:
        expected.append(batch)
        if len(expected) == 2:
            state = loader.state_dict()
        if len(expected) == 5:
            break
    assert [batch.number for batch in expected] == list(range(5))
    assert {batch.image.shape[2:] for batch in expected} == {(32, 48), (16, 64)}
    again = Loader(both, MixtureSampler(both, 2))
    again.load_state_dict(state)
    for one, other in zip(expected[2:], again, strict=False):
        assert one.names == other.names
        assert one.number == other.number
        assert all(
            torch.equal(getattr(one, key), getattr(other, key))
            for key in ("image", "depth", "normal", "valid")
        )


def test_bad_files_are_replaced_listed_once_and_do_not_end_the_run(caplog):
    bad = frozenset(range(0, 50, 3))

    def run() -> tuple[list[tuple[str, ...]], Loader]:
        mixed = mixture(bad=bad)
        loader = Loader(mixed, MixtureSampler(mixed, 5))
        return [batch.names for _, batch in zip(range(60), loader, strict=False)], loader

    with caplog.at_level(logging.WARNING):
        names, loader = run()
    indoor = Counter(
        int(name.split("/")[1]) for batch in names for name in batch if name.startswith("indoor")
    )
    assert not bad & set(indoor)
    assert len(loader.bad) == len(bad) == len(caplog.records)
    assert names == run()[0], "the substitutes are the same each time"
    hopeless = Mixture([Numbers("gone", (16, 16), 3, frozenset(range(3)))], [1])
    with pytest.raises(BadFrame, match="in a row"):
        next(iter(Loader(hopeless, MixtureSampler(hopeless, 1))))


def test_a_mirrored_frame_is_the_scene_seen_in_a_mirror():
    frame = Procedural(ProceduralConfig(96, 128)).read(4)
    k = frame.intrinsics.clone()
    k[0, 2] = 0.45
    frame = make_frame(frame.image, frame.depth, frame.normal, frame.valid, frame.normal_valid, k, frame.name)
    other = mirror(frame)
    # its normals are those of its own mirrored depth: the sign of x and the camera moved together
    for one in (frame, other):
        derived = normals_from_depth(one.depth, one.intrinsics, one.valid)
        assert not torch.allclose(one.normal[..., 0], torch.zeros(()))
        both = derived[one.valid], one.normal[one.valid]
        median = torch.rad2deg(torch.acos((both[0] * both[1]).sum(-1).clamp(-1, 1))).median()
        straight = torch.rad2deg(
            torch.acos((derived * frame.normal).sum(-1)[one.valid & frame.valid].clamp(-1, 1))
        ).median()
        if one is frame:
            expected = median
        else:
            torch.testing.assert_close(median, expected, atol=0.05, rtol=0)
            assert float(straight) > 5 * float(expected)
    again = mirror(other)
    assert torch.equal(again.normal, frame.normal)
    torch.testing.assert_close(again.intrinsics, frame.intrinsics)


def test_latents_with_one_invalid_pixel_do_not_count():
    valid = torch.ones(2, 24, 32, dtype=torch.bool)
    valid[0, 9, 15] = False
    valid[1, :, :4] = False
    mask = latent_mask(valid)
    assert mask.shape == (2, 1, 3, 4)
    assert mask[0, 0].logical_not().nonzero().tolist() == [[1, 1]]
    assert mask[1, 0].logical_not().nonzero().tolist() == [[0, 0], [1, 0], [2, 0]]


def test_fitting_keeps_the_camera_true():
    frame = Procedural(ProceduralConfig(96, 128)).read(11)
    small = fit_frame(frame, 48, 48)
    derived = normals_from_depth(small.depth, small.intrinsics, small.valid)
    angle = torch.rad2deg(torch.acos((derived * small.normal).sum(-1)[small.valid].clamp(-1, 1)))
    assert float(angle.median()) < 2


def test_configuration_names_what_is_wrong(tmp_path):
    path = tmp_path / "c.toml"

    def load(text: str):
        path.write_text(text)
        return load_data_config(str(path))

    good = '[data]\nbatch = 2\n[[data.source]]\nkind = "procedural"\nweight = 3\nheight = 32\nwidth = 48\n'
    config = load(good + '[[data.source]]\nkind = "procedural"\nname = "more"\nfirst_seed = 9\nweight = 1\n')
    opened = config.open()
    assert config.batch == 2
    assert opened.weights == (0.75, 0.25)
    assert [source.size for source in opened.sources] == [(32, 48), (192, 256)]
    for text, message in (
        (good.replace("procedural", "nyu"), "kind is 'nyu'"),
        (good + "depth = 3\n", r"\[\[data.source\]\] 1: unknown key 'depth'"),
        (good.replace("height = 32", 'height = "32"'), "'height' is '32'; expected int"),
        ("[data]\nbatch = 2\n", "no \\[\\[data.source"),
        (good.replace("batch", "bathc"), "unknown key 'bathc'"),
        ("x = 1\n", "no \\[data\\] table"),
    ):
        with pytest.raises(ValueError, match=message):
            load(text)
    with pytest.raises(ValueError, match="multiples of 16"):
        load(good.replace("32", "30")).open()
    with pytest.raises(FileNotFoundError):
        load_data_config(str(tmp_path / "none.toml"))
