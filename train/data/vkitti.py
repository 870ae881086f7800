"""Virtual KITTI 2 (Cabon et al. 2020) as published.

    <root>/SceneXX/<condition>/frames/rgb/Camera_{0,1}/rgb_IIIII.jpg
    <root>/SceneXX/<condition>/frames/depth/Camera_{0,1}/depth_IIIII.png     planar depth, 16 bit, centimetres
    <root>/SceneXX/<condition>/intrinsic.txt  (of the text archive, optional: all pictures share one camera)

The two archives unpack side by side; here they may also lie in two roots. The sky is 65535 (655.35 m), and
only depth up to 80 m counts. There are no normals: they are derived, and where the centimetres of the depth
do not say them to two degrees, there are none (`vouched_normals`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from train.data.derived_normals import derive_normals
from train.data.frame import BadFrame, Frame, crop_frame, fit_frame, make_frame
from train.data.pictures import read_picture, read_png16

#: The four scenes and the six conditions that make about 20,000 pictures with two cameras (paper 4.2).
SCENES = ("Scene02", "Scene06", "Scene18", "Scene20")
CONDITIONS = ("15-deg-left", "15-deg-right", "clone", "morning", "overcast", "sunset")
CROP = (352, 1216)
STEP = 0.01
#: fx, fy, cx, cy in pixels of the published 1242x375 pictures; pixel centres are whole numbers there.
CAMERA = (725.0087, 725.0087, 620.5, 187.0)


@dataclass(frozen=True)
class VirtualKittiConfig:
    """root: folder with the scenes; depth_root: where the depth archive lies, empty for the same. far:
    metres, depth beyond is invalid. threshold: relative depth difference that separates surfaces when normals
    are derived. height, width: size given out; the published crop is the lowest 352 rows and middle 1216
    columns."""

    root: str
    depth_root: str = ""
    scenes: tuple[str, ...] = SCENES
    conditions: tuple[str, ...] = CONDITIONS
    cameras: tuple[int, ...] = (0, 1)
    far: float = 80.0
    threshold: float = 0.1
    height: int = CROP[0]
    width: int = CROP[1]


class VirtualKitti:
    """All pictures of the chosen scenes, conditions and cameras, sorted. Raises FileNotFoundError when there
    are none.
    """

    def __init__(self, config: VirtualKittiConfig, name: str = "vkitti"):
        self.name = name
        self.size = (config.height, config.width)
        self._config = config
        root = Path(config.root)
        self._pictures: list[tuple[str, Path]] = []
        for scene in config.scenes:
            for condition in config.conditions:
                for camera in config.cameras:
                    folder = root / scene / condition / "frames" / "rgb" / f"Camera_{camera}"
                    label = f"{scene}/{condition}/Camera_{camera}"
                    self._pictures += [(label, file) for file in sorted(folder.glob("rgb_*.jpg"))]
        if not self._pictures:
            raise FileNotFoundError(
                f"vkitti: no pictures below '{root}'; expected "
                f"{config.scenes[0]}/{config.conditions[0]}/frames/rgb/Camera_0/"
                "rgb_00000.jpg and so on. Unpack vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar there"
            )
        self.length = len(self._pictures)

    def files(self, index: int) -> Sequence[str]:
        """Picture and depth file."""
        label, picture = self._pictures[index]
        scene, condition, camera = label.split("/")
        root = Path(self._config.depth_root or self._config.root)
        depth = (
            root
            / scene
            / condition
            / "frames"
            / "depth"
            / camera
            / f"depth_{picture.stem.removeprefix('rgb_')}.png"
        )
        return [str(picture), str(depth)]

    def fingerprint(self) -> str:
        """What counts as too far, where surfaces are told apart, and which normals count."""
        return f"vkitti {self._config.far} {self._config.threshold} vouched"

    def read(self, index: int) -> Frame:
        """Raises BadFrame for files that are missing, broken or of the wrong kind."""
        picture_file, depth_file = self.files(index)
        name = f"{self.name}/{self._pictures[index][0]}/{Path(picture_file).stem.removeprefix('rgb_')}"
        image = read_picture(picture_file)
        depth = read_png16(depth_file).astype(np.float32) * STEP
        if image.shape[:2] != depth.shape:
            raise BadFrame(f"{name}: picture {image.shape[:2]} and depth {depth.shape} differ in size")
        valid = (depth > 0) & (depth <= self._config.far)
        intrinsics = normalised_camera(CAMERA, *depth.shape)
        normal, normal_valid = derive_normals(depth, valid, intrinsics, self._config.threshold, STEP)
        frame = make_frame(
            image=torch.from_numpy(image),
            depth=torch.from_numpy(depth),
            normal=torch.from_numpy(normal),
            valid=torch.from_numpy(valid),
            normal_valid=torch.from_numpy(normal_valid),
            intrinsics=torch.from_numpy(intrinsics.astype(np.float32)),
            name=name,
        )
        if frame.size[0] >= CROP[0] and frame.size[1] >= CROP[1]:
            frame = crop_frame(frame, *CROP, anchor="bottom")
        return fit_frame(frame, *self.size, anchor="bottom")


def normalised_camera(camera: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """fx, fy, cx, cy in pixels whose centres are whole numbers -> (3,3) normalised, pixel centres at (i +
    0.5) / W.
    """
    fx, fy, cx, cy = camera
    return np.array([[fx / width, 0, (cx + 0.5) / width], [0, fy / height, (cy + 0.5) / height], [0, 0, 1]])
