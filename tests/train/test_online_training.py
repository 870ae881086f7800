"""Training on scenes that are rendered as it goes: labels, the order of worlds, every stage, and going on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.tensorfile import TensorFile
from train.backend import build_autoencoder
from train.config import AutoencoderShape, NanoConfig, ScenePool, TransformerShape
from train.mixtures import sample_mixture
from train.nano import write_nano
from train.online.config import AutoencoderSteps, LatentSteps, OnlineConfig, PixelSteps, Stream
from train.online.effects import compressed, defocused
from train.online.packing import pack_worlds
from train.online.raycast import RayCaster
from train.online.scenes import label_batch, turned
from train.online.source import PACKET, WorldSource, draw_packet
from train.online.train import train_online
from train.pool import label_scene
from train.scenes import HELD_OUT, render_scene
from train.transformer import ConditionedTransformer

SHAPE = TransformerShape(width=128, double_blocks=1, single_blocks=1, context_tokens=1, context_width=32, pooled_width=16)
SIZE = (16, 32)


def test_batched_labels_are_those_of_single_scenes() -> None:
    scenes = [render_scene(seed, 24, 32, mixture="second") for seed in range(6)]
    labels, spans = label_batch(torch.stack([s.depth for s in scenes]), torch.stack([s.mask for s in scenes]))
    for scene, label, span in zip(scenes, labels, spans, strict=True):
        expected = label_scene(scene)
        assert (label - expected.label[0]).abs().max() <= 1 / 128  # a step of BF16 where rounding falls otherwise
        assert (label == expected.label[0]).float().mean() > 0.98
        depth = scene.depth[scene.mask].log()
        assert float(span) == pytest.approx(float(np.subtract(*np.percentile(depth.numpy(), [98, 2]))), rel=1e-4)


def test_worlds_come_in_the_order_of_their_seeds_from_any_number_of_processes() -> None:
    source = WorldSource("second", 500, workers=2)
    try:
        found = [next(source) for _ in range(3)]
    finally:
        source.close()
    for number, packet in enumerate(found):
        expected = draw_packet(number, "second", 500)
        for name in vars(expected):
            assert torch.equal(getattr(packet, name), getattr(expected, name)), name
    # and they are the worlds of `render_scene`
    world = sample_mixture(np.random.default_rng([2, 500]), "second")
    assert torch.equal(pack_worlds([world]).centre[0], found[0].centre[0])


def test_a_turned_camera_sees_the_same_world_from_the_same_place() -> None:
    world, camera = sample_mixture(np.random.default_rng(3), "second", "room")
    packed = pack_worlds([(world, replace(camera, pitch=0.0, roll=0.0, fov=90.0))])
    cast = RayCaster(torch.device("cpu"))
    ahead, aside = cast(packed, 33, 33), cast(turned(packed, torch.tensor([math.pi / 2])), 33, 33)
    # the right border of the first is the left border of the second: rays 45 degrees to the side, z measured along other axes
    first, second = ahead.depth[0, 16, -1], aside.depth[0, 16, 0]
    assert float(first) == pytest.approx(float(second), rel=0.15)


def test_the_camera_blurs_what_is_out_of_focus_and_compression_keeps_flat_colours() -> None:
    rng = np.random.default_rng(0)
    stripes = (torch.arange(32) % 2).float().expand(1, 3, 16, 32).contiguous()
    depth = torch.cat((torch.full((1, 16, 16), 1.0), torch.full((1, 16, 16), 30.0)), 2)
    result = defocused(stripes.repeat(8, 1, 1, 1), depth.repeat(8, 1, 1), torch.ones(8, 16, 32, dtype=torch.bool), rng, share=1.0)
    contrast = (result[..., 1:] - result[..., :-1]).abs()
    assert contrast[..., 18:30].mean() < 0.9 or contrast[..., 2:14].mean() < 0.9
    flat = torch.full((2, 3, 16, 16), 0.4)
    assert (compressed(flat, rng, share=1.0) - flat).abs().max() < 0.05
    noisy = torch.rand(4, 3, 16, 16)
    assert (compressed(noisy, rng, share=1.0) - noisy).abs().mean() > 0.005
    assert torch.equal(compressed(noisy, rng, share=0.0), noisy)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    like = NanoConfig(transformer_shape=SHAPE, pool=ScenePool(sizes=(SIZE,)))
    autoencoder = build_autoencoder(AutoencoderShape(width=32, multipliers=(1, 1, 1, 1)))
    write_nano(path, like, ConditionedTransformer(SHAPE), autoencoder)
    return path


def config_of(start, work) -> OnlineConfig:
    common = {"warmup": 2, "save_every": 2, "learning_rate": 1e-3, "muon_rate": 1e-3}
    return OnlineConfig(
        work=str(work), start=str(start), sizes=(SIZE, (32, 16)), held_out=4, blend=True, transformer_shape=SHAPE,
        stream=Stream(batch=PACKET, workers=1),
        autoencoder=AutoencoderSteps(steps=2, batch=16, warmup=2, save_every=1),
        transformer=LatentSteps(steps=6, batch=8, fresh=8, memory=64, range_power=1.0, **common),
        pixels=PixelSteps(steps=2, batch=16, chunk=8, **common),
    )


def test_all_stages_leave_a_checkpoint_that_has_learned_and_a_stopped_run_goes_on(start, tmp_path, capsys) -> None:
    config, out = config_of(start, tmp_path / "work"), tmp_path / "out.safetensors"
    device = torch.device("cpu")
    assert train_online(config, device, out, minutes=1e-4) is False
    assert "goes on" in capsys.readouterr().out
    assert train_online(config, device, out)
    text = capsys.readouterr().out
    assert "  autoencoder 1/2 loss" not in text, "what was done before the stop is not done again"
    for stage in ("autoencoder", "transformer", "pixels", "mean of the last two"):
        assert f"{stage} done; 4 held-out scenes" in text
    with TensorFile(start, "start") as before, TensorFile(out, "out") as after:
        old, new = read_checkpoint(before), read_checkpoint(after)
        assert (new.info.height, new.info.width) == SIZE
        for part in ("transformer", "vae"):
            weights = getattr(new, part)
            moved = [name for name in weights if not torch.equal(weights[name], getattr(old, part)[name])]
            assert len(moved) > len(list(weights)) / 2
            assert all(bool(torch.isfinite(weights[name].float()).all()) for name in weights)
    assert train_online(config, device, out), "a finished run has nothing left to do"
    assert " loss " not in capsys.readouterr().out


def test_a_configuration_that_cannot_work_is_refused(start, tmp_path) -> None:
    config, device = config_of(start, tmp_path), torch.device("cpu")
    with pytest.raises(ValueError, match="mixture is 'third'"):
        train_online(replace(config, mixture="third"), device, tmp_path / "x")
    with pytest.raises(ValueError, match="multiples of 16"):
        train_online(replace(config, sizes=((20, 32),)), device, tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        train_online(replace(config, start=str(tmp_path / "none")), device, tmp_path / "x")
    with pytest.raises(ValueError, match="held-out"):
        train_online(replace(config, first_seed=HELD_OUT), device, tmp_path / "x")
    with pytest.raises(ValueError, match=f"multiple of {PACKET}"):
        train_online(replace(config, stream=Stream(batch=10)), device, tmp_path / "x")


def test_an_unknown_mixture_is_refused() -> None:
    with pytest.raises(ValueError, match="mixture 'fourth' is unknown"):
        render_scene(1, 8, 8, mixture="fourth")
