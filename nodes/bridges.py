"""Our geometry as ComfyUI's own geometry types, so that its nodes for MoGe and Depth Anything 3 take it."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..fe2e_core.geometry import points_from_depth
from .assumed import assumed_inputs, complete, geometry_input
from .node import Node

MogeGeometry, Da3Geometry = io.Custom("MOGE_GEOMETRY"), io.Custom("DA3_GEOMETRY")


class FE2EToMoGe(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EToMoGe",
            display_name="Geometry to MoGe Geometry",
            category="FE2E/3d",
            description="For core nodes that take MOGE_GEOMETRY: points, depth, normals, camera and mask in "
            "its axes.",
            search_aliases=["moge", "convert", "bridge", "fe2e"],
            inputs=[geometry_input(), *assumed_inputs()],
            outputs=[
                MogeGeometry.Output(display_name="moge_geometry", tooltip="For MoGeRender and the other MoGe nodes.")
            ],
        )

    @classmethod
    def execute(cls, geometry, fov, far_near_ratio) -> io.NodeOutput:
        full = complete(geometry, fov, far_near_ratio)
        mask = full["mask"]
        # ComfyUI marks pixels that do not count by infinite points and depth; its mesh and render nodes skip
        # those
        depth = torch.where(mask, full["depth"], torch.inf)
        points = points_from_depth(full["depth"], full["intrinsics"].to(full["depth"]))
        moge = {
            "points": torch.where(mask.unsqueeze(-1), points, torch.inf),
            "depth": depth,
            "intrinsics": full["intrinsics"],
            "mask": mask,
            "normal": full["normal"],
            "image": full["image"].cpu(),
            "metric": bool(full["metric"]),  # ours: Anchor Depth refuses depth without a unit as a reference
        }
        return io.NodeOutput(moge)


class FE2EToDA3(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EToDA3",
            display_name="Geometry to Depth Anything 3 Geometry",
            category="FE2E/3d",
            description="For core nodes that take DA3_GEOMETRY: depth, camera in pixels, masked pixels as "
            "sky.",
            search_aliases=["da3", "depth anything", "convert", "bridge", "fe2e"],
            inputs=[geometry_input(), *assumed_inputs()],
            outputs=[
                Da3Geometry.Output(display_name="da3_geometry", tooltip="For the Depth Anything 3 nodes.")
            ],
        )

    @classmethod
    def execute(cls, geometry, fov, far_near_ratio) -> io.NodeOutput:
        full = complete(geometry, fov, far_near_ratio)
        height, width = full["depth"].shape[1:]
        pixels = full["intrinsics"].clone()
        pixels[:, 0] *= width
        pixels[:, 1] *= height
        # pixel i's centre is at i there and at i + 1/2 here
        pixels[:, 0, 2] -= 0.5
        pixels[:, 1, 2] -= 0.5
        da3 = {
            "depth": full["depth"],
            "image": full["image"].cpu(),
            "mode": "mono",
            "intrinsics": pixels.unsqueeze(0),
            "sky": (~full["mask"]).to(torch.float32),
            "metric": bool(full["metric"]),
        }
        if full.get("confidence") is not None:
            da3["confidence"] = full["confidence"]
        return io.NodeOutput(da3)


NODES: list[type[io.ComfyNode]] = [FE2EToMoGe, FE2EToDA3]
