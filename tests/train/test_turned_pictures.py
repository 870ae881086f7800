"""A camera's tag that asks for turning: the stored pixels stay with the stored depth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from train.data.folder import Folder, FolderConfig
from train.data.pictures import read_array, read_picture

HEIGHT, WIDTH = 48, 64
ORIENTATION = 0x0112


def write(folder: Path, ending: str, tag: int) -> Folder:
    """One picture whose white upper part is near, and the left half of that nearest."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[: HEIGHT // 2] = 180
    pixels[: HEIGHT // 2, : WIDTH // 2] = 250
    depth = 5000 - 16 * pixels[..., 0].astype(np.uint16)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[ORIENTATION] = tag
    picture.save(folder / f"a{ending}", exif=exif)
    with Image.open(folder / f"a{ending}") as stored:
        assert stored.getexif()[ORIENTATION] == tag
    cv2.imwrite(str(folder / "depth.png"), depth)
    (folder / "depth.png").rename(folder / "a_depth.png")
    (folder / "dataset.toml").write_text(
        f'image = "{{name}}{ending}"\ndepth = "{{name}}_depth.png"\ndepth_scale = 0.001\nfov_x = 60.0\n'
    )
    return Folder(FolderConfig(str(folder), HEIGHT, WIDTH))


@pytest.mark.parametrize("ending", [".jpg", ".png"])
@pytest.mark.parametrize("tag", [1, 2, 3, 6, 8])
def test_picture_and_depth_stay_together(tmp_path, ending, tag):
    frame = write(tmp_path, ending, tag).read(0)
    expected = (5 - 0.016 * 255 * frame.image[..., 0]).clamp_min(0)
    torch.testing.assert_close(frame.depth, expected, atol=0.1, rtol=0)
    assert float(frame.depth.max() - frame.depth.min()) > 3.9


def test_readers_give_the_stored_size(tmp_path):
    write(tmp_path, ".jpg", 6)
    assert read_picture(str(tmp_path / "a.jpg")).shape == read_array(str(tmp_path / "a.jpg")).shape == (HEIGHT, WIDTH, 3)
