"""Input pictures and clips for tests that go through a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image


def photograph(width: int, height: int) -> Image.Image:
    """The free portrait of an astronaut that scikit-image brings along (NASA, public domain), resized."""
    from skimage import data

    return Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.LANCZOS)


def drawn_scene(width: int, height: int) -> Image.Image:
    """A scene of the kind that the embedded model knows, and has not seen: that of the pictures on the help pages."""
    from train.scenes import HELD_OUT, render_scene

    return Image.fromarray((render_scene(HELD_OUT + 8, height, width).image.numpy() * 255).round().astype("uint8"))


Source = Callable[[int, int], Image.Image]


def write_example(folder: Path, width: int = 320, height: int = 232, source: Source = photograph) -> Path:
    """`example.png`, the picture that every ComfyUI has in its input folder and our workflows name."""
    path = folder / "example.png"
    source(width, height).save(path)
    return path


def write_clip(
    folder: Path, frames: int = 6, width: int = 160, height: int = 112, source: Source = photograph
) -> Path:
    """`example.mp4`: the camera pans over the picture, 8 frames a second, without sound."""
    import av
    import numpy as np

    path = folder / "example.mp4"
    wide = source(width + 4 * frames, height)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            view = np.asarray(wide.crop((4 * index, 0, 4 * index + width, height)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode())
    return path
