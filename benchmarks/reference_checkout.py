"""A checkout of the reference implementation as a contender, when the user has one and gives its path.

Nothing of it is in this repository. Its modules are imported from the given folder, built at the
benchmark's size and driven in the order of its own inference code. Two packages that need a GPU are
replaced by stand-ins of the same mathematics before the import: flash attention by
`scaled_dot_product_attention`, liger's RMS norm by torch's.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.sizes import ModelSize
from benchmarks.timing import Clock, module_bytes


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """flash_attn_func's interface, (B,tokens,heads,width), by torch's own attention."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout_p, is_causal=causal, scale=softmax_scale
    ).transpose(1, 2)


class _RMSNorm:
    """liger_kernel's function interface: rms norm with float32 statistics, `offset` added to the weight."""

    @staticmethod
    def apply(
        x: Tensor,
        weight: Tensor,
        eps: float,
        offset: float = 0.0,
        casting_mode: str = "llama",
        in_place: bool = True,
    ) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (normed * (weight.float() + offset)).to(x.dtype)


def _stand_ins() -> dict[str, types.ModuleType]:
    modules = {
        name: types.ModuleType(name)
        for name in (
            "flash_attn",
            "flash_attn.flash_attn_interface",
            "liger_kernel",
            "liger_kernel.ops",
            "liger_kernel.ops.rms_norm",
        )
    }
    interface = modules["flash_attn.flash_attn_interface"]
    interface.flash_attn_func = _attention
    interface.flash_attn_varlen_func = interface._flash_attn_forward = None
    modules["flash_attn"].flash_attn_interface = interface
    modules["liger_kernel.ops.rms_norm"].LigerRMSNormFunction = _RMSNorm
    return modules


class ReferenceCheckout:
    """The reference's own modules. path: the folder with `infer/` and `modules/` of its repository.

    tensors: transformer with connector (public names); vae: autoencoder tensors; dtype: float32, or
    bfloat16, which runs under autocast as its own code does. Raises FileNotFoundError when the folder is no
    such checkout.
    """

    def __init__(
        self,
        path: str,
        size: ModelSize,
        tensors: Mapping[str, Tensor],
        vae: Mapping[str, Tensor],
        prompt: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ):
        root = Path(path)
        missing = [
            f
            for f in ("infer/inference.py", "modules/model_edit.py", "modules/autoencoder.py")
            if not (root / f).is_file()
        ]
        if missing:
            raise FileNotFoundError(
                f"--reference {path}: {missing} are not there; give the root of a checkout of AMAP-ML/FE2E"
            )
        stand_ins = _stand_ins()
        sys.modules.update(
            {
                name: module
                for name, module in stand_ins.items()
                if device.type != "cuda" or not _installed(name)
            }
        )
        sys.path.insert(0, str(root))
        try:
            inference = importlib.import_module("infer.inference")
            model, autoencoder, connector = (
                importlib.import_module(f"modules.{n}")
                for n in ("model_edit", "autoencoder", "connector_edit")
            )
        finally:
            sys.path.remove(str(root))
        heads = size.hidden // 128
        with torch.device("meta"):
            dit = model.Step1XEdit(
                model.Step1XParams(
                    in_channels=64,
                    out_channels=64,
                    vec_in_dim=size.pooled,
                    context_in_dim=size.context_width,
                    hidden_size=size.hidden,
                    mlp_ratio=4.0,
                    num_heads=heads,
                    depth=size.doubles,
                    depth_single_blocks=size.singles,
                    axes_dim=[16, 56, 56],
                    theta=10_000,
                    qkv_bias=True,
                )
            )
            # Its constructor knows one width of connector only.
            dit.connector = connector.Qwen2Connector(
                in_channels=size.prompt_width,
                hidden_size=size.context_width,
                heads_num=max(1, size.context_width // 128),
                depth=size.refiner_blocks,
            )
            ae = autoencoder.AutoEncoder(
                resolution=256,
                in_channels=3,
                ch=size.vae_width,
                out_ch=3,
                ch_mult=[1, 2, 4, 4],
                num_res_blocks=2,
                z_channels=16,
                scale_factor=0.3611,
                shift_factor=0.1159,
            )
        dit.load_state_dict({name: tensors[name].to(dtype) for name in tensors}, strict=True, assign=True)
        ae.load_state_dict({name: vae[name].float() for name in vae}, strict=True, assign=True)
        # It samples the posterior, unseeded; the mean costs the same and can be compared.
        ae.reg.sample = False
        self.dtype, self.device = dtype, device
        # Its code reads the prompt cache from a file at every picture.
        self._folder = tempfile.TemporaryDirectory(prefix="fe2e-reference-")
        cache = Path(self._folder.name) / "no_info.npz"
        np.savez(cache, embeds=prompt[0].numpy(), masks=prompt[1].numpy())
        generator = object.__new__(inference.ImageGenerator)
        generator.device, generator.offload, generator.llm_encoder = device, False, None
        generator.args = types.SimpleNamespace(empty_prompt_cache=str(cache))
        generator.dit, generator.ae = dit.to(device).eval(), ae.to(device).eval()
        self.generator = generator

    def weight_bytes(self) -> int:
        return module_bytes(self.generator.dit) + module_bytes(self.generator.ae)

    @torch.inference_mode()
    def latents(self, image: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """(1,H,W,3) picture -> depth and normal latents, by its encode, prepare and denoise."""
        generator = self.generator
        height, width = image.shape[1:3]
        with clock.stage("encode"):
            latent = generator.ae.encode(image.movedim(-1, 1).to(self.device) * 2 - 1)
            latent = torch.cat([latent, latent])
        start = torch.zeros(2, *latent.shape[1:], device=self.device, dtype=self.dtype)
        inputs = generator.prepare(
            ["", ""], start, ref_image=latent, ref_image_raw=torch.cat([image, image]), empty_llm=True
        )
        watch = _ConnectorWatch(generator.dit.connector, clock.synchronize)
        autocast = (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.dtype == torch.bfloat16
            else nullcontext()
        )
        with clock.stage("transformer"), autocast, watch:
            depth, normal = generator.denoise(**inputs, cfg_guidance=6.0, timesteps=[1.0, 0.0])
        inside = watch.clock
        clock.move(inside.total, sum(inside.processor.values()), source="transformer", target="connector")
        return generator.unpack(depth.float(), height, width), generator.unpack(normal.float(), height, width)

    @torch.inference_mode()
    def __call__(self, image: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """(1,H,W,3) -> depth (1,H,W) in [0,1] and normals (1,3,H,W)."""
        latents = self.latents(image, clock)
        with clock.stage("decode"):
            depth, normal = (self.generator.ae.decode(latent).clamp(-1, 1).cpu() for latent in latents)
        with clock.stage("geometry"):
            result = (depth * 0.5 + 0.5).mean(dim=1), F.normalize(normal, dim=1)
        return result


class _ConnectorWatch:
    """Times a module inside another one's forward."""

    def __init__(self, module: torch.nn.Module, synchronize) -> None:
        self.clock = Clock(synchronize)
        self._module = module

    def __enter__(self) -> None:
        stage: list = []

        def begin(module, arguments) -> None:
            self.clock.synchronize()
            stage.append(self.clock.stage("connector"))
            stage[-1].__enter__()

        def end(module, arguments, output) -> None:
            stage.pop().__exit__(None, None, None)

        self._hooks = [self._module.register_forward_pre_hook(begin), self._module.register_forward_hook(end)]

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
