"""Training really trains: objective, arithmetic shortcuts, replicas, resuming, and a run of seconds from end to end."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fe2e_core.conditioning import Conditioning
from fe2e_core.packing import pack, predict_latents
from train.__main__ import main
from train.augmentation import augment_pictures
from train.backend import SCALE, SHIFT, build_autoencoder, build_transformer, decode, encode, velocity_of
from train.config import (
    AutoencoderShape,
    AutoencoderTraining,
    DecoderTraining,
    LatentPool,
    NanoConfig,
    ScenePool,
    TransformerShape,
    TransformerTraining,
    load_config,
)
from train.evaluation import CheckpointPredictor
from train.fast_attention import use_fast_attention
from train.fast_norm import use_fast_norms
from train.nano import blended, train_nano
from train.objective import joint_loss, latent_mask
from train.pixels import aligned_error, angles
from train.pool import label_scene
from train.replicas import train_replicas
from train.scenes import render_scene
from train.transformer import ConditionedTransformer
from train.vae import fold_epsilon, fold_latent_scale, latent_statistics, soften_norms, unfold_epsilon

SMALL = AutoencoderShape(32, (1, 1, 1, 1), 1)
TINY = TransformerShape(width=128, double_blocks=1, single_blocks=1, context_tokens=2, context_width=16, pooled_width=8)


def test_objective_is_zero_for_the_right_answer_and_knows_its_signs():
    depth, normal = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 4, 6)
    right = torch.cat([pack(-depth), pack(normal)], dim=1)

    def answer(tokens, ids, context, context_ids, timestep, pooled):
        assert (tokens[:, :6] == 0).all() and (timestep == 1).all() and torch.equal(ids[:, :6], ids[:, 6:])
        return right

    conditioning = Conditioning(torch.zeros(1, 2, 16), torch.zeros(1, 8))
    image, weight = torch.randn(2, 16, 4, 6), torch.ones(2, 1, 4, 6)
    losses = joint_loss(answer, image, depth, normal, weight, conditioning)
    assert [float(x) for x in losses] == [0.0, 0.0]
    flipped = joint_loss(answer, image, -depth, normal, weight, conditioning)
    assert float(flipped[0]) == pytest.approx(float((4 * depth.square()).mean()), rel=1e-5)
    masked = torch.zeros(2, 1, 4, 6)
    masked[:, :, 0, 0] = 1
    only = joint_loss(answer, image, depth + 1, normal, masked, conditioning)
    assert float(only[0]) == pytest.approx(1.0, rel=1e-5)
    # twice the depth loss of one sample of two, and nothing of the normals'
    factor = torch.tensor([0.0, 2.0])
    one, none = joint_loss(answer, image, -depth, normal, weight, conditioning, factor)
    assert float(one) == pytest.approx(float((4 * depth[1].square()).mean()), rel=1e-5) and float(none) == 0


def test_pixel_losses_are_the_scores():
    label = torch.rand(2, 12, 16) * 2 - 1
    valid = torch.ones(2, 12, 16)
    valid[1, :, 8:] = 0
    spoilt = torch.where(valid > 0, 0.3 * label - 0.4, 7.0)
    torch.testing.assert_close(aligned_error(spoilt, label, valid), torch.zeros(2), atol=1e-6, rtol=0)
    # as in the evaluation: least squares of ln(depth)
    noisy = label + 0.3 * torch.randn(2, 12, 16)
    for sample in range(2):
        mask = valid[sample] > 0
        line = np.polynomial.Polynomial.fit(noisy[sample][mask], label[sample][mask], 1)
        expected = np.abs(line(noisy[sample][mask].numpy()) - label[sample][mask].numpy()).mean()
        assert float(aligned_error(noisy, label, valid)[sample]) == pytest.approx(expected, rel=1e-4)
    assert aligned_error(label, label, torch.zeros(2, 12, 16)).tolist() == [0, 0]
    normal = torch.nn.functional.normalize(torch.randn(1, 3, 4, 5), dim=1)
    axis = torch.linalg.cross(normal, torch.randn(1, 3, 4, 5), dim=1)
    turned = 3 * (normal * math.cos(0.5) + torch.nn.functional.normalize(axis, dim=1) * math.sin(0.5))
    torch.testing.assert_close(angles(turned, normal), torch.full((1, 4, 5), 0.5))
    exact = normal.clone().requires_grad_()
    angles(exact, normal).sum().backward()
    assert torch.isfinite(exact.grad).all()


def test_one_bad_pixel_spoils_its_latent_only():
    valid = torch.ones(1, 16, 24, dtype=torch.bool)
    valid[0, 9, 17] = False
    mask = latent_mask(valid)
    assert mask.shape == (1, 1, 2, 3) and mask[0, 0, 1, 2] == 0 and float(mask.sum()) == 5


def test_mirroring_a_sample_mirrors_its_geometry():
    scene = render_scene(4, 32, 48)
    sample = label_scene(scene)
    mirrored = sample.flipped()
    assert torch.equal(mirrored.label.flip(-1), sample.label)
    np.testing.assert_allclose(mirrored.normal[0, 0].flip(-1).numpy(), -sample.normal[0, 0].numpy())
    np.testing.assert_allclose(mirrored.normal[0, 1:].flip(-1).numpy(), sample.normal[0, 1:].numpy())
    # Network axes: x left, y up, z toward the camera.
    np.testing.assert_allclose(sample.normal[0].permute(1, 2, 0).numpy(), -scene.normal.numpy(), atol=1e-6)
    assert float(sample.label.min()) >= -1 and float(sample.label.max()) <= 1
    assert (sample.label == sample.label.to(torch.bfloat16).float()).all()


def test_augmentation_keeps_pictures_pictures():
    pictures = torch.rand(4, 3, 24, 32)
    changed = augment_pictures(pictures, np.random.default_rng(0))
    assert changed.shape == pictures.shape and 0 <= float(changed.min()) and float(changed.max()) <= 1
    assert torch.equal(changed, augment_pictures(pictures, np.random.default_rng(0)))
    assert not torch.equal(changed, augment_pictures(pictures, np.random.default_rng(1)))


def test_quick_norm_is_the_norm():
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, 64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 64, 6, 5, requires_grad=True)
    weight = torch.randn(3, 64, 6, 5)
    plain = norm(x)
    expected = torch.autograd.grad((plain * weight).sum(), [x, norm.weight, norm.bias])
    use_fast_norms(norm)
    quick = norm(x)
    found = torch.autograd.grad((quick * weight).sum(), [x, norm.weight, norm.bias])
    torch.testing.assert_close(quick, plain, atol=1e-5, rtol=1e-4)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_quick_attention_is_the_attention():
    torch.manual_seed(0)
    transformer = build_transformer(TINY)
    nn.init.normal_(transformer.proj_out.weight)
    conditioning = Conditioning(torch.randn(1, 2, 16), torch.randn(1, 8))
    latent = torch.randn(2, 16, 4, 6)
    with torch.no_grad():
        plain = predict_latents(velocity_of(transformer), latent, conditioning)
        use_fast_attention(transformer)
        quick = predict_latents(velocity_of(transformer), latent, conditioning)
    for a, b in zip(plain, quick, strict=True):
        assert float(a.std()) > 0.1
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_soft_norms_and_the_flux_form_are_one_network():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(AutoencoderShape(64, (1, 1, 1, 1), 1))
    soften_norms(autoencoder)
    pictures = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = encode(autoencoder, pictures)
        decoded = decode(autoencoder, latents)
        fold_epsilon(autoencoder)
        torch.testing.assert_close(encode(autoencoder, pictures), latents, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(decode(autoencoder, latents), decoded, atol=1e-5, rtol=1e-4)
    assert {m.eps for m in autoencoder.modules() if isinstance(m, nn.GroupNorm)} == {1e-6}
    folded = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    unfold_epsilon(autoencoder)
    assert any(not torch.equal(value, folded[name]) for name, value in autoencoder.state_dict().items())
    fold_epsilon(autoencoder)
    assert all(torch.equal(value, folded[name]) for name, value in autoencoder.state_dict().items())


def test_latents_are_put_on_the_flux_scale():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(SMALL)
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        mean = autoencoder.encode(pictures).latent_dist.mean
        before = autoencoder.decode(mean).sample
        fold_latent_scale(autoencoder, *latent_statistics(autoencoder, pictures))
        latents = encode(autoencoder, pictures)
        after = decode(autoencoder, latents)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(16), atol=1e-3, rtol=0)
    assert (SCALE, SHIFT) == (0.3611, 0.1159)
    # The decoder undoes it, except that its zero padding now means another value.
    assert float((after - before).abs().mean()) < 0.3 * float(before.std())


class _Fit:
    """Least squares on fixed data, its rows shared out among the replicas."""

    def prepare(self, model: nn.Module) -> None:
        pass

    def loss(self, model: nn.Module, step: int, rank: int, replicas: int) -> torch.Tensor:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))[rank::replicas]
        return (model(x) - x.sum(1, keepdim=True)).square().mean()


def test_two_replicas_take_the_step_of_one():
    weights = []
    for replicas in (1, 2):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train_replicas(model, _Fit(), range(5), replicas, lambda step, loss, o=optimizer: o.step())
        weights.append(model.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])


class _Convolve(_Fit):
    def loss(self, model: nn.Module, step: int, rank: int, replicas: int) -> torch.Tensor:
        x = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(step))
        return (model(x) - x.roll(1, dims=2)).square().mean()


def test_gradients_have_the_memory_order_of_their_parameters():
    # A fused optimizer walks both as flat memory: a channels-last weight with a plain gradient learns nonsense.
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(32, 32, 3, padding=1).to(memory_format=layout)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
        train_replicas(model, _Convolve(), range(4), 1, lambda step, loss, o=optimizer: o.step())
        results.append(model.weight.detach().contiguous())
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-3)


TINY_RUN = NanoConfig(
    replicas=1,
    autoencoder_shape=SMALL,
    transformer_shape=TINY,
    pool=ScenePool(scenes=8, sizes=((32, 48),), workers=1),
    small=LatentPool(scale=1.0, share=1.0),
    fine=LatentPool(scale=1.0, share=0.5, seed=4),
    autoencoder=AutoencoderTraining(steps=12, batch=6, crop=32),
    decoder=DecoderTraining(steps=3, batch=4),
    transformer=TransformerTraining(
        steps=50, fine_steps=5, batch=8, fine_batch=2, warmup=5, save_every=25, ema=0.9, range_power=1.0
    ),
    pixels=TransformerTraining(
        steps=20, fine_steps=0, batch=4, warmup=2, save_every=20, ema=0.9, learning_rate=1e-4, muon_rate=2e-4
    ),
)


def _losses(lines: list[str], kind: str) -> list[float]:
    return [float(line.split("loss ")[1].split()[0]) for line in lines if line.startswith(kind)]


def test_a_run_of_seconds_learns_writes_and_resumes(tmp_path: Path):
    config = dataclasses.replace(TINY_RUN, work=str(tmp_path / "work"))
    out = tmp_path / "tiny.safetensors"
    lines: list[str] = []
    train_nano(config, out, lines.append)
    losses = _losses(lines, "transformer")
    assert losses[-1] < 0.8 * losses[0]
    assert len(_losses(lines, "pixels")) == 1
    predictor = CheckpointPredictor(out)
    assert predictor.size == (32, 48)
    label, normal = predictor(render_scene(0, 32, 48).image)
    assert label.shape == (32, 48) and -1 <= float(label.min()) and float(label.max()) <= 1
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones(32, 48))
    assert not list(tmp_path.rglob("*.tmp"))
    # A second call finds everything done and writes the same bytes.
    first = out.read_bytes()
    again: list[str] = []
    train_nano(config, out, again.append)
    assert not any(line.startswith(("transformer", "pixels", "autoencoder", "decoder", "rendering", "encoding")) for line in again)
    assert out.read_bytes() == first


def test_a_blend_is_the_mean_of_the_weights():
    models = [ConditionedTransformer(TINY) for _ in range(3)]
    result = blended(models).state_dict()
    for name, value in result.items():
        torch.testing.assert_close(value, sum(m.state_dict()[name] for m in models) / 3)
    assert all((models[2].state_dict()[n] != v).any() for n, v in result.items() if v.dim() == 3)


def test_a_run_goes_on_from_a_finished_model(tmp_path: Path):
    first = dataclasses.replace(TINY_RUN, work=str(tmp_path / "first"))
    train_nano(first, tmp_path / "first.safetensors", lambda line: None)
    training = dataclasses.replace(TINY_RUN.transformer, steps=1, fine_steps=0, learning_rate=0.0, muon_rate=0.0)
    further = dataclasses.replace(
        TINY_RUN,
        work=str(tmp_path / "further"),
        start=str(tmp_path / "first.safetensors"),
        transformer=training,
        pixels=dataclasses.replace(training, batch=4),
        decoder=dataclasses.replace(TINY_RUN.decoder, steps=1, learning_rate=0.0),
    )
    train_nano(further, tmp_path / "further.safetensors", lambda line: None)
    image = render_scene(4, 32, 48).image
    before, after = (
        CheckpointPredictor(tmp_path / f"{name}.safetensors")(image) for name in ("first", "further")
    )
    # a step of length zero changes nothing: everything that predicts was taken over
    torch.testing.assert_close(before, after, atol=0, rtol=0)
    # and the mean of three equal models is that model
    train_nano(dataclasses.replace(further, blend=True), tmp_path / "blend.safetensors", lambda line: None)
    assert (tmp_path / "blend.safetensors").read_bytes() == (tmp_path / "further.safetensors").read_bytes()
    other = dataclasses.replace(further, transformer_shape=dataclasses.replace(TINY, single_blocks=2))
    with pytest.raises(ValueError, match=r"start .*first\.safetensors: .*\[transformer_shape\]"):
        train_nano(dataclasses.replace(other, work=str(tmp_path / "other")), tmp_path / "x", lambda line: None)
    assert not (tmp_path / "x").exists()


def test_shipped_configuration_is_valid_and_dry_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "model.safetensors"
    assert main(["nano", "--dry-run", "--out", str(out), "--work", str(tmp_path / "work")]) == 0
    assert "held-out" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "unknown key 'stepz'"),
        ("[pool]\nscenes = 'many'", "expected int"),
        ("[transformer_shape]\nwidth = 100", "multiple of 128"),
        ("[pool]\nsizes = [[100, 96]]", "multiples of 16"),
        ("[autoencoder_shape]\nwidth = 40", "multiples of 32"),
        ("transformer = 3", "expected a table"),
    ],
)
def test_wrong_configurations_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    assert main(["nano", "--dry-run", "--config", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["nano", "--dry-run", "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
    assert main(["score-nano", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_held_out_seeds_stay_held_out(tmp_path: Path):
    from train.pool import build_pool

    with pytest.raises(ValueError, match="held-out"):
        build_pool(tmp_path, ScenePool(scenes=10, first_seed=999_999_995))


def test_config_reads_what_is_written(tmp_path: Path):
    file = tmp_path / "c.toml"
    file.write_text("held_out = 7\n[pool]\nscenes = 5\nsizes = [[32, 48]]\n[autoencoder]\nlearning_rate = 1\n")
    config = load_config(file, NanoConfig)
    assert config.held_out == 7 and config.pool.sizes == ((32, 48),)
    assert config.autoencoder.learning_rate == 1.0 and config.transformer == TransformerTraining()
