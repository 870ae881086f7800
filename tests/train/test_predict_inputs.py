"""What `train predict` finds, how it names results, and how it reads pictures, videos and shards."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from train.prediction.inputs import PICTURE, SHARD, VIDEO, find_work
from train.prediction.reading import BadInput, Shard, Video, decode_picture


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(work) -> list[tuple[str, str]]:
    return [(item.kind, item.name) for item in work]


def test_folders_are_walked_in_order_without_what_is_hidden_or_ours(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "sub/c.webp", "sub/clip.mp4", "s-000.tar", "notes.txt", ".hidden.png",
          ".cache/d.png", "out/a.depth_view.png")  # fmt: skip
    assert names(find_work([tmp_path], tmp_path / "out")) == [
        (PICTURE, "a"), (PICTURE, "b"), (SHARD, "s-000.tar"), (PICTURE, "sub/c"), (VIDEO, "sub/clip.mp4"),
    ]  # fmt: skip


def test_pictures_that_differ_in_the_extension_only_keep_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "A.png", "b.png", "c.d.png")
    assert [n for _, n in names(find_work([tmp_path], tmp_path / "out"))] == ["A.png", "a.jpg", "b", "c.d"]


def test_files_are_named_by_themselves_or_below_a_root(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.png", "y/1.png")
    files = [tmp_path / "x/1.png", tmp_path / "y/1.png"]
    with pytest.raises(ValueError, match="--root"):
        find_work(files, tmp_path / "out")
    assert [n for _, n in names(find_work(files, tmp_path / "out", tmp_path))] == ["x/1", "y/1"]
    with pytest.raises(ValueError, match="does not lie below"):
        find_work(files, tmp_path / "out", tmp_path / "x")


def test_the_same_file_twice_counts_once_and_a_missing_one_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    work = find_work([tmp_path, tmp_path / "a.png", tmp_path / "gone.png"], tmp_path / "out")
    assert [(item.name, item.bytes) for item in work] == [("a", 1), ("gone", 0)]


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match="no picture, video or tar"):
        find_work([tmp_path], tmp_path / "out")


def encoded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def test_eight_bit_pictures_of_every_mode(picture: np.ndarray) -> None:
    exact = torch.from_numpy(picture.astype(np.float32) / 255)
    assert torch.equal(decode_picture(encoded(picture)), exact)
    assert torch.equal(decode_picture(encoded(picture, "WEBP", lossless=True)), exact)
    with_alpha = np.concatenate([picture, np.full((9, 14, 1), 7, np.uint8)], axis=-1)
    assert torch.equal(decode_picture(encoded(with_alpha)), exact)
    grey = decode_picture(encoded(picture[..., 0]))
    assert torch.equal(grey, exact[..., :1].expand(-1, -1, 3))


def test_sixteen_bits_are_kept() -> None:
    deep = np.random.default_rng(6).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    for array, kind in ((deep, ".png"), (deep, ".tif"), (deep[..., 0], ".png")):
        bgr = array[..., ::-1] if array.ndim == 3 else array
        good, data = cv2.imencode(kind, bgr)
        assert good
        expected = torch.from_numpy(np.broadcast_to(array.reshape(5, 7, -1), (5, 7, 3)).astype(np.float32) / 65535)
        torch.testing.assert_close(decode_picture(data.tobytes()), expected, atol=1e-7, rtol=0)


def test_the_noted_orientation_is_applied(picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    turned = decode_picture(encoded(picture, exif=exif.tobytes()))
    assert torch.equal(turned, torch.from_numpy(np.rot90(picture, -1).astype(np.float32) / 255))


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        decode_picture(data)


def test_half_a_picture_is_refused() -> None:
    for kind in ("PNG", "JPEG"):
        data = encoded(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
        with pytest.raises(BadInput, match="not a whole one"):
            decode_picture(data[: len(data) // 2])


def test_video_frames_come_in_order_and_nearly_as_written(tmp_path: Path) -> None:
    path = tmp_path / "grey.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 16))
    for number in range(6):
        writer.write(np.full((16, 32, 3), (0, 30 * number, 255 - 30 * number), np.uint8))  # blue, green, red
    writer.release()
    with Video(path) as video:
        assert video.frames == 6
        seen = []
        while video.skip():
            seen.append(video.frame())
    assert len(seen) == 6
    for number, frame in enumerate(seen):
        expected = torch.tensor([255 - 30 * number, 30 * number, 0]) / 255
        torch.testing.assert_close(frame, expected.expand(16, 32, 3), atol=0.03, rtol=0)
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(BadInput, match="no video"):
        Video(tmp_path / "no.mp4")


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


def test_neighbours_with_one_key_are_a_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [
        ("a/0.rgb.png", b"A"), ("a/0.depth.png", b"B"), ("a/0.json", b"{}"), ("b/0.JPG", b"C"), ("1.txt", b"t"),
    ])  # fmt: skip
    with Shard(path) as shard:
        samples = list(shard)
        assert [sample.key for sample in samples] == ["a/0", "b/0", "1"]
        assert [shard.read(sample) for sample in samples[:2]] == [b"A", b"C"]
        with pytest.raises(BadInput, match="no file with"):
            shard.read(samples[2])
        assert [sample.end for sample in samples] == sorted(sample.end for sample in samples)
    with Shard(path, "depth.png") as shard:
        assert shard.read(next(iter(shard))) == b"B"


def test_a_tar_cut_off_gives_what_it_holds_and_then_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.png", b"0" * 600), ("1.png", b"1" * 600), ("2.png", b"2" * 2000)])
    path.write_bytes(path.read_bytes()[:4300])
    keys = []
    with Shard(path) as shard, pytest.raises(BadInput, match="ends in the middle"):
        for sample in shard:
            keys.append(sample.key)
    assert keys == ["0", "1"]
    (tmp_path / "no.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(BadInput, match="no plain tar"):
        Shard(tmp_path / "no.tar")
