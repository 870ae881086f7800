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
            camera,
            depth,
            estimation,
            export,
            features,
            loading,
            mesh,
            normal,
            pictures,
            renames,
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
            camera,
            scene,
            anchor,
            video,
        )
        nodes = [node for module in modules for node in module.NODES]
        return nodes + await renames.keep_old_ids(nodes)


async def comfy_entrypoint() -> ComfyExtension:
    folders.register()
    return FE2EExtension()
