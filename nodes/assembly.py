"""Taking an FE2E_MODEL apart, putting it together again, and saving it as one file."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..fe2e_core.checkpoint import write_checkpoint
from ..fe2e_core.folding import CONSTANT, is_folded
from . import folders
from .backend import float32_vae
from .node import Node
from .types import FE2EModel, FE2EModelType

logger = logging.getLogger(__name__)


def require_model(model: object) -> FE2EModel:
    """Raise ValueError unless this is an FE2E_MODEL."""
    if not isinstance(model, FE2EModel):
        raise ValueError(f"fe2e_model: found {type(model).__name__}; connect 'Load FE2E Model'")
    return model


def transformer_weights(model: FE2EModel) -> dict[str, Tensor]:
    """The transformer's tensors under public FLUX names; patches of core nodes (LoRAs) are applied as each is read."""
    mm.load_models_gpu([model.patcher])
    prefix = "model.diffusion_model."
    return {re.sub(r"_norm\.weight$", "_norm.scale", name.removeprefix(prefix)): tensor
            for name, tensor in model.patcher.state_dict_for_saving().items()}


class FE2ESaveCheckpoint(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ESaveCheckpoint",
            display_name="Save FE2E Checkpoint",
            category="FE2E/model",
            description="Writes everything a prediction needs into one file in the model folder 'fe2e': transformer (folded, with its "
                        "LoRA), VAE and conditioning. Load it with 'Load FE2E Model'.",
            search_aliases=["pack fe2e", "fold model", "save model", "merge lora"],
            is_output_node=True,
            inputs=[
                FE2EModelType.Input("fe2e_model", tooltip="From 'Load FE2E Model'."),
                io.String.Input("filename", default="fe2e-folded", tooltip="Name of the file in the model folder 'fe2e'. An existing file is "
                                                                          "never overwritten: a number is added."),
            ],
            outputs=[io.String.Output(display_name="filename", tooltip="The name it was saved under.")],
        )

    @classmethod
    def execute(cls, fe2e_model: FE2EModel, filename: str) -> io.NodeOutput:
        model = require_model(fe2e_model)
        path = free_name(filename)
        weights = transformer_weights(model)
        vae = {k: v for k, v in model.vae.get_sd().items() if not k.startswith(("quant_conv.", "post_quant_conv."))}
        progress = comfy.utils.ProgressBar(1000)

        def on_step(done: int, total: int) -> None:
            mm.throw_exception_if_processing_interrupted()
            progress.update_absolute(int(1000 * done / total))

        write_checkpoint(path, replace(model.info, name=path.stem), weights, vae, model.conditioning, model.silu_vec, on_step)
        logger.info("FE2E: saved %s (%.2f GiB)", path, path.stat().st_size / 2**30)
        return io.NodeOutput(path.name)


def free_name(filename: str) -> Path:
    """A path for a new checkpoint in the first `fe2e` model folder; ValueError when the name leaves that folder."""
    folder = Path(folder_paths.get_folder_paths(folders.FOLDER)[0])
    name = filename.removesuffix(".safetensors").strip()
    if not name or Path(name).name != name or name.startswith(".") or "\\" in name or "\0" in name or len(name.encode()) > 200:
        raise ValueError(f"filename: found {filename!r}; expected a plain file name without folders, such as 'fe2e-folded'")
    folder.mkdir(parents=True, exist_ok=True)
    candidates = [folder / f"{name}.safetensors", *(folder / f"{name}_{i:02}.safetensors" for i in range(2, 1000))]
    return next(path for path in candidates if not path.exists())


class FE2ETakeApart(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ETakeApart",
            display_name="Take FE2E Model Apart",
            category="FE2E/model",
            description="Hands out the transformer as MODEL and the autoencoder as VAE, for core nodes such as TorchCompileModel, attention "
                        "patches and LoRA loaders. Give the changed parts to 'Put FE2E Model Together'.",
            search_aliases=["fe2e split", "torch compile", "fe2e lora"],
            inputs=[FE2EModelType.Input("fe2e_model", tooltip="From 'Load FE2E Model'.")],
            outputs=[io.Model.Output(display_name="model", tooltip="The transformer."),
                     io.Vae.Output(display_name="vae", tooltip="The autoencoder, in float32.")],
        )

    @classmethod
    def execute(cls, fe2e_model: FE2EModel) -> io.NodeOutput:
        model = require_model(fe2e_model)
        if model.folded:
            constants = [k for k in model.patcher.model_state_dict() if k.endswith("." + CONSTANT)]
            logger.warning("FE2E: this transformer is folded: core LoRA nodes cannot reach its %d modulation layers (%s, ...). Give such "
                           "a LoRA to 'Load FE2E Model', or load the released parts there with folding switched off", len(constants), constants[0])
        return io.NodeOutput(model.patcher.clone(), model.vae)


class FE2EPutTogether(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EPutTogether",
            display_name="Put FE2E Model Together",
            category="FE2E/model",
            description="Replaces the transformer or the autoencoder of an FE2E model by a changed one.",
            search_aliases=["fe2e join", "fe2e merge", "replace vae", "replace transformer"],
            inputs=[
                FE2EModelType.Input("fe2e_model", tooltip="The model whose conditioning and remaining parts are kept."),
                io.Model.Input("model", optional=True, tooltip="The changed transformer, from 'Take FE2E Model Apart'."),
                io.Vae.Input("vae", optional=True, tooltip="A FLUX VAE to use instead; a float32 copy of it is made."),
            ],
            outputs=[FE2EModelType.Output(display_name="fe2e_model", tooltip="For 'Estimate Depth+Normal'.")],
        )

    @classmethod
    def execute(cls, fe2e_model: FE2EModel, model=None, vae=None) -> io.NodeOutput:
        whole = require_model(fe2e_model)
        if model is not None:
            names = set(model.model_state_dict(filter_prefix="diffusion_model."))
            ours = set(whole.patcher.model_state_dict(filter_prefix="diffusion_model."))
            if names != ours:
                folded = is_folded(n.removeprefix("diffusion_model.") for n in names)
                raise ValueError(f"model: its layers differ from this FE2E model's ({len(names ^ ours)} tensors, first "
                                 f"{sorted(names ^ ours)[:3]}; {'folded' if folded else 'not folded'}); connect the MODEL that "
                                 "'Take FE2E Model Apart' made of the same FE2E model")
            whole = replace(whole, patcher=model)
        if vae is not None and vae is not whole.vae:
            whole = replace(whole, vae=float32_vae(vae))
        return io.NodeOutput(whole)


NODES: list[type[io.ComfyNode]] = [FE2ESaveCheckpoint, FE2ETakeApart, FE2EPutTogether]
