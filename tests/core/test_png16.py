from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fe2e_core.png16 import encode_png16


def decode(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (64, 48)])
def test_other_readers_see_every_level(size):
    grey = torch.rand(*size, generator=torch.Generator().manual_seed(2))
    expected = (grey.double() * 65535).round().numpy().astype(np.uint16)
    assert np.array_equal(decode(encode_png16(grey)), expected)
    color = torch.rand(*size, 3, generator=torch.Generator().manual_seed(3))
    expected = (color.double() * 65535).round().numpy().astype(np.uint16)
    seen = decode(encode_png16(color))
    assert seen.dtype == np.uint16
    assert np.array_equal(seen[..., ::-1], expected)


def test_pillow_reads_it_and_finds_the_text():
    data = encode_png16(torch.linspace(0, 1, 65536).reshape(256, 256), text={"FE2E": "depth in mm"})
    picture = Image.open(io.BytesIO(data))
    assert picture.size == (256, 256)
    assert picture.text == {"FE2E": "depth in mm"}
    assert np.array_equal(np.asarray(picture).ravel(), np.arange(65536))


def test_scale_and_clamping():
    values = torch.tensor([[1.2342, 70.0, -1.0, float("nan"), float("inf")]])
    assert decode(encode_png16(values, scale=1000)).tolist() == [[1234, 65535, 0, 0, 65535]]
    for wrong in (torch.zeros(2, 2, 2), torch.zeros(0, 3), torch.zeros(4)):
        with pytest.raises(ValueError, match="image: found shape"):
            encode_png16(wrong)
