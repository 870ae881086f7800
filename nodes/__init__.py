"""The extension: which nodes there are. The only package here that knows ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders


class FE2EExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from . import (
            anchor,
            assembly,
            bridges,
            depth,
            estimation,
            export,
            features,
            loading,
            mesh,
            normal,
            pictures,
            scene,
            video,
        )

        modules = (
            loading,
            estimation,
            depth,
            normal,
            export,
            assembly,
            mesh,
            bridges,
            pictures,
            features,
            scene,
            anchor,
            video,
        )
        return [node for module in modules for node in module.NODES]


async def comfy_entrypoint() -> ComfyExtension:
    folders.register()
    return FE2EExtension()
