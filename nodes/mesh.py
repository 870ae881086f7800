"""Mesh, point cloud and splats for ComfyUI's 3D viewers and savers."""

from __future__ import annotations

import torch
from comfy.cli_args import args
from comfy_api.latest import Types, io

from ..fe2e_core.geometry import y_up_from_opencv
from ..fe2e_core.gltf import encode_texture, write_glb
from ..fe2e_core.mesh import grid_mesh
from ..fe2e_core.ply import write_ply
from ..fe2e_core.pointcloud import point_cloud
from ..fe2e_core.splats import surfels
from .assumed import (
    Camera,
    assumed_inputs,
    complete,
    file_3d,
    geometry_input,
    index_input,
    one_picture,
    viewpoint,
)
from .node import Node

MeshType, SplatType = io.Custom("MESH"), io.Custom("SPLAT")
GlbType, PlyType = io.Custom("FILE_3D_GLB"), io.Custom("FILE_3D_PLY")
NO_TEXTURE = "none"


def _camera_output() -> io.Output:
    return Camera.Output(
        display_name="camera_info",
        tooltip="The place the picture was taken from, for 3D viewers and RenderSplat.",
    )


def _stride_input() -> io.Input:
    return io.Int.Input(
        "stride",
        default=1,
        min=1,
        max=64,
        tooltip="Use every n-th pixel: 1 is full detail, 2 a quarter of the size.",
    )


def _edge_input() -> io.Input:
    return io.Float.Input(
        "edge",
        default=0.05,
        min=0.0,
        max=10.0,
        step=0.005,
        tooltip="Cut where depth jumps by more than this fraction beyond what the slope explains. Smaller "
        "cuts more, 0 never.",
    )


class FE2EMesh(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EMesh",
            display_name="Geometry to Mesh",
            category="FE2E/3d",
            description=(
                "A textured surface of one picture, cut at depth edges and where it is seen edge-on, with "
                "the predicted normals in the file. The GLB goes to Preview 3D and Save 3D, the MESH to core "
                "mesh nodes."
            ),
            search_aliases=["mesh", "glb", "photo to mesh", "3d", "displacement", "fe2e"],
            inputs=[
                geometry_input(),
                index_input(),
                _stride_input(),
                _edge_input(),
                io.Float.Input(
                    "max_angle",
                    default=87.0,
                    min=1.0,
                    max=90.0,
                    step=0.5,
                    tooltip="Cut triangles seen at more than this angle from their normal, in degrees. They "
                    "are mostly the rubber sheet of a softened edge. 90 keeps all.",
                ),
                io.Combo.Input(
                    "texture",
                    options=["png", "jpeg", NO_TEXTURE],
                    default="png",
                    tooltip="How the picture is stored in the file: png is exact, jpeg about a tenth of the "
                    "size.",
                ),
                io.Boolean.Input(
                    "unlit",
                    default=False,
                    advanced=True,
                    tooltip="Show the picture without the viewer's lamps. The light of the photograph is in "
                    "it already.",
                ),
                *assumed_inputs(),
            ],
            outputs=[
                GlbType.Output(
                    display_name="glb", tooltip="Finished glTF file: y up, normals, texture, camera."
                ),
                MeshType.Output(
                    display_name="mesh", tooltip="The same surface for core mesh nodes (no normals)."
                ),
                _camera_output(),
            ],
        )

    @classmethod
    def execute(
        cls, geometry, batch_index, stride, edge, max_angle, texture, unlit, fov, far_near_ratio
    ) -> io.NodeOutput:
        picture = one_picture(complete(geometry, fov, far_near_ratio), batch_index)
        depth, k = picture["depth"], picture["intrinsics"]
        mesh = grid_mesh(
            depth, k, picture["normal"], picture["mask"], stride=stride, edge=edge, max_angle=max_angle
        )
        encoded = None if texture == NO_TEXTURE else encode_texture(picture["image"], texture)
        aspect = depth.shape[1] / depth.shape[0]
        # With this flag ComfyUI forbids its page to open blobs, and its viewer would show the mesh all white.
        inline = bool(getattr(args, "disable_api_nodes", False))
        glb = write_glb(mesh, encoded, intrinsics=k, aspect=aspect, unlit=unlit, inline=inline)
        core = _core_mesh(
            y_up_from_opencv(mesh.vertices).unsqueeze(0),
            mesh.faces.unsqueeze(0),
            uvs=mesh.uvs.unsqueeze(0),
            texture=None if encoded is None else picture["image"].unsqueeze(0),
        )
        return io.NodeOutput(file_3d(glb, "glb"), core, viewpoint(picture))


def _core_mesh(vertices: torch.Tensor, faces: torch.Tensor, **texture: torch.Tensor | None) -> Types.MESH:
    """ComfyUI's MESH of vertices (1,N,3), faces (1,M,3) and what belongs to the texture."""
    mesh = Types.MESH(vertices, faces)
    # ComfyUI 0.18 has meshes of one colour: to its own nodes these are attributes that nobody reads.
    for name, value in texture.items():
        setattr(mesh, name, value)
    return mesh


class FE2EPointCloud(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EPointCloud",
            display_name="Geometry to Point Cloud",
            category="FE2E/3d",
            description="Coloured points with normals of one picture as a PLY file. Relative geometry is "
            "welcome.",
            search_aliases=["point cloud", "ply", "points", "3d", "fe2e"],
            inputs=[
                geometry_input(),
                index_input(),
                _stride_input(),
                _edge_input(),
                io.Float.Input(
                    "min_confidence",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Leave out points below this confidence, if the geometry has one.",
                ),
                *assumed_inputs(),
            ],
            outputs=[
                PlyType.Output(
                    display_name="ply", tooltip="Binary PLY: y up, position, normal, 8-bit colour."
                ),
                _camera_output(),
            ],
        )

    @classmethod
    def execute(
        cls, geometry, batch_index, stride, edge, min_confidence, fov, far_near_ratio
    ) -> io.NodeOutput:
        picture = one_picture(complete(geometry, fov, far_near_ratio), batch_index)
        cloud = _cloud(picture, stride, edge, min_confidence)
        return io.NodeOutput(file_3d(write_ply(cloud), "ply"), viewpoint(picture))


class FE2ESplat(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ESplat",
            display_name="Geometry to Splats",
            category="FE2E/3d",
            description=(
                "One flat gaussian per pixel, lying in the surface by the predicted normal and as wide as "
                "the pixel is there: closed surfaces without training. For Render Splat and the splat savers."
            ),
            search_aliases=["gaussian splat", "splat", "surfel", "3dgs", "fe2e"],
            inputs=[
                geometry_input(),
                index_input(),
                io.Int.Input(
                    "stride",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="Use every n-th pixel; the discs grow accordingly.",
                ),
                _edge_input(),
                io.Float.Input(
                    "min_confidence",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Leave out splats below this confidence, if the geometry has one.",
                ),
                io.Float.Input(
                    "size",
                    default=0.7,
                    min=0.05,
                    max=5.0,
                    step=0.05,
                    tooltip="Standard deviation in pixel distances. 0.6 to 0.9 closes the surface without "
                    "blurring it.",
                ),
                io.Float.Input(
                    "opacity", default=0.98, min=0.01, max=1.0, step=0.01, tooltip="Opacity of every splat."
                ),
                *assumed_inputs(),
            ],
            outputs=[
                SplatType.Output(display_name="splat", tooltip="For Render Splat and the splat savers."),
                _camera_output(),
            ],
        )

    @classmethod
    def execute(
        cls, geometry, batch_index, stride, edge, min_confidence, size, opacity, fov, far_near_ratio
    ) -> io.NodeOutput:
        if not hasattr(Types, "SPLAT"):
            raise RuntimeError("this ComfyUI has no splats; update ComfyUI to use this node")
        picture = one_picture(complete(geometry, fov, far_near_ratio), batch_index)
        s = surfels(_cloud(picture, stride, edge, min_confidence), size=size, opacity=opacity)
        # OpenCV axes (y down, z forward) are those of gaussian splats: nothing is turned here
        parts = (part.unsqueeze(0) for part in (s.positions, s.scales, s.rotations, s.opacities, s.sh))
        return io.NodeOutput(Types.SPLAT(*parts), viewpoint(picture))


def _cloud(picture: dict, stride: int, edge: float, min_confidence: float):
    return point_cloud(
        picture["depth"],
        picture["intrinsics"],
        picture["normal"],
        picture["image"],
        picture["mask"],
        confidence=picture.get("confidence"),
        min_confidence=min_confidence,
        stride=stride,
        edge=edge,
    )


NODES: list[type[io.ComfyNode]] = [FE2EMesh, FE2EPointCloud, FE2ESplat]
