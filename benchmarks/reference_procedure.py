"""What the reference does for one picture, through the same ComfyUI Flux and VAE that our nodes use.

Its procedure, by its paper and its released inference code: the picture is encoded; the latent and the
empty prompt are duplicated into a "conditional" and an "unconditional" copy; the connector and the
transformer run over both in one batch; one copy is kept; both halves are decoded. Only the procedure
differs from ours: modules, kernels, dtype and device are the same, so the ratio shows the procedure alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.sizes import ModelSize
from benchmarks.timing import Clock, module_bytes
from fe2e_core.conditioning import Conditioning, constant_conditioning
from fe2e_core.packing import join_halves, split_halves


class ReferenceProcedure:
    """The procedure on ComfyUI's modules.

    tensors: public FLUX names with `connector.*`. vae: the same comfy.sd.VAE as ours. prompt: embeds and
    mask. dtype: of the transformer's weights, None for ComfyUI's choice.
    """

    def __init__(
        self,
        size: ModelSize,
        tensors: Mapping[str, Tensor],
        vae: object,
        prompt: tuple[Tensor, Tensor],
        dtype: torch.dtype | None,
    ):
        import comfy.model_management
        import comfy.sd

        self._management: ModuleType = comfy.model_management
        names = [name for name in tensors if not name.startswith("connector.")]
        options = {} if dtype is None else {"dtype": dtype}
        # ComfyUI's own loader as it is, the way a user of the released file would get the transformer.
        self.patcher = comfy.sd.load_diffusion_model_state_dict(
            {name: tensors[name] for name in names}, model_options=options
        )
        self.vae = vae
        self.device = self.patcher.load_device
        self.connector = {
            name: tensors[name].to(self.device) for name in tensors if name.startswith("connector.")
        }
        self.embeds, self.mask = (x.to(self.device) for x in prompt)
        self.heads = max(1, size.context_width // 128)

    def weight_bytes(self) -> int:
        """Bytes of all weights it has to keep: transformer, connector, autoencoder."""
        modules = module_bytes(self.patcher.model.diffusion_model) + module_bytes(self.vae.first_stage_model)
        return modules + sum(tensor.nbytes for tensor in self.connector.values())

    @torch.inference_mode()
    def latents(self, image: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """(1,H,W,3) picture whose sides are multiples of 16 -> depth and normal latents."""
        model, flux = self.patcher.model, self.patcher.model.diffusion_model
        with clock.stage("encode"):
            self._management.load_models_gpu(
                [self.vae.patcher], memory_required=self.vae.memory_used_encode(image.shape, torch.float32)
            )
            pixels = image.movedim(-1, 1).to(self.vae.device, torch.float32) * 2 - 1
            latent = model.process_latent_in(self.vae.first_stage_model.encode(pixels).float()).to(
                self.device
            )
            latent = torch.cat([latent, latent])
        with clock.stage("connector"):
            copies = [
                constant_conditioning(self.connector, self.embeds, self.mask, self.heads) for _ in range(2)
            ]
            conditioning = Conditioning(copies[0].context, copies[0].pooled)
            context, pooled = (
                torch.cat([getattr(c, name) for c in copies]) for name in ("context", "pooled")
            )
        with clock.stage("transformer"):
            b, c, h, w = latent.shape
            self._management.load_models_gpu(
                [self.patcher], memory_required=self.patcher.memory_required([b, c, h, 2 * w])
            )
            dtype = model.get_dtype_inference()
            tokens, ids = join_halves(latent)
            prediction = flux.forward_orig(
                img=tokens.to(dtype),
                img_ids=ids,
                txt=context.to(dtype),
                txt_ids=torch.zeros(b, conditioning.context.shape[1], 3, device=self.device),
                timesteps=torch.ones(b, device=self.device),
                y=pooled.to(dtype),
                transformer_options={},
            )
            depth, normal = split_halves(prediction[:1].float(), h, w)
        return depth, normal

    @torch.inference_mode()
    def __call__(self, image: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """(1,H,W,3) -> depth (1,H,W) in [0,1] and normals (1,3,H,W), as its evaluation takes them."""
        depth, normal = self.latents(image, clock)
        with clock.stage("decode"):
            maps = []
            for latent in (depth, normal):
                latent = self.patcher.model.process_latent_out(latent)
                self._management.load_models_gpu(
                    [self.vae.patcher],
                    memory_required=self.vae.memory_used_decode(latent.shape, torch.float32),
                )
                maps.append(
                    self.vae.first_stage_model.decode(latent.to(self.vae.device, torch.float32))
                    .float()
                    .clamp(-1, 1)
                    .cpu()
                )
        with clock.stage("geometry"):
            result = (maps[0] * 0.5 + 0.5).mean(dim=1), torch.nn.functional.normalize(maps[1], dim=1)
        return result
