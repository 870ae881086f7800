"""The three stages of `python -m train online`: autoencoder, transformer on latents, transformer behind the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from fe2e_core.packing import predict_latents
from train.backend import LATENT_CHANNELS, SCALE, SHIFT, velocity_of
from train.fast_norm import use_fast_norms, use_plain_norms
from train.objective import joint_loss, latent_mask
from train.online.run import Run
from train.online.scenes import Samples, Size
from train.pixels import ABSOLUTE, aligned_error, angles
from train.transformer import ConditionedTransformer, make_optimizers
from train.vae import as_pictures, fold_epsilon, prior_divergence, unfold_epsilon


def joined_pictures(samples: Samples) -> Tensor:
    """What the autoencoder sees, (3B,3,H,W) in [-1,1]: images, labels three times, normals."""
    return torch.cat(as_pictures(samples)).contiguous(memory_format=torch.channels_last)


def train_autoencoder(run: Run, autoencoder: AutoencoderKL) -> AutoencoderKL:
    """Train the autoencoder further, in place. Posteriors are sampled, so that the decoder forgives a transformer that is a
    little wrong; the prior is FLUX's scale."""
    config = run.config.autoencoder
    model = autoencoder.requires_grad_(True).to(run.device, memory_format=torch.channels_last)
    unfold_epsilon(model)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.0, fused=True)
    if config.steps:
        use_fast_norms(model)
        stream = run.open_stream(0)
        pending: list[Samples] = []
        torch.manual_seed(config.seed)

        def step(number: int) -> Tensor:
            if not pending:
                pending.extend(stream.next_batch(number, run.size(number)).split(config.batch))
            loss = _reconstruction(run, model, pending.pop())
            loss.backward()
            return loss

        run.train("autoencoder", model, [optimizer], [config.learning_rate], config.steps, config.warmup, config.minutes,
                  config.save_every, step)
    use_plain_norms(model)
    fold_epsilon(model)
    return model.eval().requires_grad_(False)


def _reconstruction(run: Run, model: AutoencoderKL, samples: Samples) -> Tensor:
    """L1 + L2 of all three pictures, the angle of the normals, and KL to FLUX's scale."""
    config, pictures = run.config.autoencoder, joined_pictures(samples)
    with run.autocast():
        moments = model.encoder(pictures)
        mean, logvar = moments.float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        result = model.decoder(mean + torch.randn_like(mean) * (0.5 * logvar).exp()).float()
    error = result - pictures
    of_angle = angles(result.chunk(3)[2], samples.normal).mean()
    per_pixel = prior_divergence(mean, logvar).sum() / pictures[:, 0].numel()
    return error.abs().mean() + error.square().mean() + config.angle_weight * of_angle + config.kl_weight * per_pixel


@dataclass
class _Memory:
    """Latents of one picture size: `values` (count, 3 * 16 + 1, h, w) BF16, image, depth, normal and the loss weight;
    `log_range` (count,). `filled` of them are there, the next one goes to `place`."""

    values: Tensor
    log_range: Tensor
    filled: int = 0
    place: int = 0

    def add(self, values: Tensor, log_range: Tensor) -> None:
        count = len(self.values)
        index = (self.place + torch.arange(len(values), device=values.device)) % count
        self.values[index], self.log_range[index] = values.to(self.values.dtype), log_range
        self.place = (self.place + len(values)) % count
        self.filled = min(count, self.filled + len(values))


def _open_memory(run: Run, size: Size) -> _Memory:
    height, width = size[0] // 8, size[1] // 8
    count = run.config.transformer.memory
    shape = (count, 3 * LATENT_CHANNELS + 1, height, width)
    return _Memory(torch.empty(shape, dtype=torch.bfloat16, device=run.device), torch.empty(count, device=run.device))


@torch.no_grad()
def _encoded(run: Run, encoder: torch.nn.Module, pictures: Tensor) -> Tensor:
    """Posterior means on FLUX's scale, float32; in parts of 96 pictures, so that little memory is needed."""
    with run.autocast():
        parts = [encoder(part).float()[:, :LATENT_CHANNELS] for part in pictures.split(96)]
    return (torch.cat(parts) - SHIFT) * SCALE


def train_on_latents(run: Run, autoencoder: AutoencoderKL, model: ConditionedTransformer) -> ConditionedTransformer:
    """FE2E's objective in latents (Eq. 8). Returns the moving average of the weights; `model` is trained in place."""
    config = run.config.transformer
    autoencoder = autoencoder.to(run.device, memory_format=torch.channels_last)
    model.to(run.device)
    averaged = ConditionedTransformer(run.config.transformer_shape).to(run.device)
    average: dict[str, Tensor] = {}
    if config.steps:
        use_fast_norms(autoencoder)
        stream = run.open_stream(1)
        memories = {size: _open_memory(run, size) for size in dict.fromkeys(run.config.sizes)}
        generator = torch.Generator(run.device).manual_seed(config.seed)
        batch = run.config.stream.batch
        owed, drawn, mean_range = dict.fromkeys(memories, 2.0 * config.batch), 0, 1.0

        def fill(size: Size) -> None:
            nonlocal drawn, mean_range
            samples = stream.next_batch(drawn, size)
            drawn += 1
            latents = _encoded(run, autoencoder.encoder, joined_pictures(samples))
            valid = latent_mask(samples.valid)
            weight = valid + (1 - valid) * config.invalid_weight
            keep = samples.usable
            memories[size].add(torch.cat((*latents.chunk(3), weight), 1)[keep], samples.log_range[keep])
            mean_range = 0.98 * mean_range + 0.02 * float(samples.log_range[keep].mean())

        def step(number: int) -> Tensor:
            size = run.size(number)
            memory = memories[size]
            owed[size] += config.fresh
            while owed[size] >= batch or not memory.filled:
                owed[size] -= batch
                fill(size)
            index = torch.randint(memory.filled, (config.batch,), generator=generator, device=run.device)
            image, depth, normal, weight = memory.values[index].float().split([LATENT_CHANNELS] * 3 + [1], 1)
            factor = (memory.log_range[index] / mean_range) ** config.range_power
            with run.autocast():
                losses = joint_loss(
                    velocity_of(model.transformer), image, depth, normal, weight, model.conditioning(), factor
                )
            loss = losses[0] + losses[1]
            loss.backward()
            return loss

        optimizers = make_optimizers(model, config)
        rates = (config.muon_rate, config.learning_rate)
        run.train("transformer", model, optimizers, rates, config.steps, config.warmup, config.minutes,
                  config.save_every, step, average, config.ema, config.clip)
        use_plain_norms(autoencoder)
        averaged.load_state_dict(average)
    else:
        averaged.load_state_dict(model.state_dict())
    return averaged.eval().requires_grad_(False)


class _Pair(torch.nn.Module):
    """Transformer and decoder, so that one state holds both."""

    def __init__(self, model: ConditionedTransformer, decoder: torch.nn.Module):
        super().__init__()
        self.model, self.decoder = model, decoder


def train_behind_decoder(
    run: Run, autoencoder: AutoencoderKL, model: ConditionedTransformer
) -> tuple[ConditionedTransformer, AutoencoderKL]:
    """Last steps with the loss in depth and angles, as `train.pixels` has it, for the transformer and the decoder. Returns the
    moving averages of both; what is given is trained in place."""
    config = run.config.pixels
    autoencoder = autoencoder.to(run.device, memory_format=torch.channels_last)
    unfold_epsilon(autoencoder)
    autoencoder.requires_grad_(False)
    model.to(run.device).requires_grad_(True)
    model.pooled.requires_grad_(False)
    model.transformer.time_text_embed.requires_grad_(False)
    pair = _Pair(model, autoencoder.decoder.requires_grad_(config.decoder_rate > 0))
    average: dict[str, Tensor] = {}
    if config.steps:
        use_fast_norms(autoencoder)
        stream = run.open_stream(2)
        pending: list[Samples] = []

        def step(number: int) -> Tensor:
            if not pending:
                pending.extend(stream.next_batch(number, run.size(number)).split(config.batch))
            samples = pending.pop()
            total = torch.zeros((), device=run.device)
            for part in samples.split(config.chunk):
                loss = _behind(run, autoencoder, model, part) * (len(part.image) / len(samples.image))
                loss.backward()
                total = total + loss.detach()
            return total

        optimizers = [*make_optimizers(model, config)]
        rates = [config.muon_rate, config.learning_rate]
        if config.decoder_rate:
            optimizers.append(torch.optim.AdamW(autoencoder.decoder.parameters(), config.decoder_rate, weight_decay=0.0, fused=True))
            rates.append(config.decoder_rate)
        run.train("pixels", pair, optimizers, rates, config.steps, config.warmup, config.minutes,
                  config.save_every, step, average, config.ema, config.clip)
        pair.load_state_dict(average)
    use_plain_norms(autoencoder)
    fold_epsilon(autoencoder)
    return model.eval().requires_grad_(False), autoencoder.eval().requires_grad_(False)


def _behind(run: Run, autoencoder: AutoencoderKL, model: ConditionedTransformer, samples: Samples) -> Tensor:
    pictures = (samples.image * 2 - 1).contiguous(memory_format=torch.channels_last)
    image = _encoded(run, autoencoder.encoder, pictures)
    with run.autocast():
        latents = torch.cat(predict_latents(velocity_of(model.transformer), image, model.conditioning()))
        latents = (latents.float() / SCALE + SHIFT).contiguous(memory_format=torch.channels_last)
        depth, facing = autoencoder.decoder(latents).float().chunk(2)
    counts = samples.usable.float()
    depth, valid = depth.mean(1), samples.valid.float()
    weight = valid + run.config.pixels.invalid_weight * (1 - valid)
    absolute = ((depth - samples.label).abs() * weight).mean((1, 2))
    of_depth = 0.5 * samples.log_range * (aligned_error(depth, samples.label, valid) + ABSOLUTE * absolute)
    # A decoded normal should be of length one as well, or a picture of it is grey.
    length = (F.relu(1 - facing.norm(dim=1)) * weight).mean()
    of_normal = (angles(facing, samples.normal) * weight).mean((1, 2))
    return ((of_depth + of_normal) * counts).mean() + 0.1 * length
