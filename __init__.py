"""FE2E for ComfyUI: depth and surface normals from one photograph in one pass."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
