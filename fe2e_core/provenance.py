"""What a LoRA says of its training: the base and the conditioning it goes with, and how its answers are read.

`python -m train lora` writes it into the file's metadata. The released LoRA says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .checkpoint import CheckpointInfo
from .quantization import SCHEMES

_CONFIG = "fe2e.config"


@dataclass(frozen=True)
class Provenance:
    """base: file name of the base. guidance: the fixed guidance it was trained with, for a base that has an input for
    it. quantization: of the depth labels. height, width: pixels in training, 0 unknown. joint: whether normals were
    trained."""

    base: str
    guidance: float
    quantization: str
    height: int
    width: int
    joint: bool

    def of_checkpoint(self, info: CheckpointInfo) -> CheckpointInfo:
        """What a checkpoint with this LoRA says of itself."""
        made = replace(info, quantization=self.quantization, height=self.height or info.height, width=self.width or info.width)
        return made.noted(self.joint)


def provenance(metadata: Mapping[str, str], what: str) -> Provenance | None:
    """What a LoRA's safetensors metadata say, None for a LoRA that `python -m train lora` did not make.

    Raises ValueError for a description that cannot be read, or a LoRA that predicts from noise: here the start is zero.
    """
    if _CONFIG not in metadata:
        return None
    try:
        config = json.loads(metadata[_CONFIG])
        base, objective = config["base"], config["objective"]
        found = Provenance(
            base=metadata.get("ss_sd_model_name", ""), guidance=float(base.get("guidance", 1.0)),
            quantization=objective["quantization"], joint=bool(objective["joint"]),
            **_size(metadata.get("ss_resolution", "")))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{what}: its metadata '{_CONFIG}' cannot be read ({error!r}); export it again") from error
    if found.quantization not in SCHEMES:
        raise ValueError(f"{what}: its depth labels are {found.quantization!r}; expected one of {', '.join(SCHEMES)}")
    if objective.get("start") != "zero":
        raise ValueError(f"{what}: it was trained with start = {objective.get('start')!r}, to predict from noise; only LoRAs trained "
                         "with start = 'zero' predict in one fixed pass")
    return found


def _size(text: str) -> dict[str, int]:
    """kohya's "(width, height)"."""
    match = re.fullmatch(r"\((\d+), *(\d+)\)", text)
    return {"height": int(match[2]), "width": int(match[1])} if match else {"height": 0, "width": 0}
