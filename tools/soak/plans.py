"""What PyTorch keeps of every size of picture it has convolved on a CPU, and how a server is started that keeps little.

oneDNN makes a plan of each shape of convolution, and PyTorch keeps it: 1,024 of them, twice, before the oldest goes. A
server that is given a new size each time grows by that until both are full, with this pack or without any. Endurance is
about what does *not* end by itself, so both are held to a few plans there, which are full after the first prompts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tools.soak.result import Result

#: Plans of either kind that a process may keep; both libraries take 1,024 when they are not told.
FEW_PLANS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
#: glibc raises both limits (bytes) with what is freed, after which pictures are cut out of one heap and leave holes in
#: it that count as memory of the process. Fixed, large blocks go back to the system when they are freed.
PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
#: For a server whose growth is to be its own.
STEADY = {**FEW_PLANS, **PLAIN_MALLOC}
SIZES = 4096

#: Memory in use (MB, as glibc counts what it has handed out) before the first, after a quarter and after all.
_PROGRAM = """
import ctypes, gc, json, sys, torch
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena blocks fast maps mapped a b used free top".split()]
libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Info
def held():
    gc.collect()
    info = libc.mallinfo2()
    return (info.used + info.mapped) / 2**20
torch.set_num_threads(1)
kernel, count = torch.rand(3, 1, 3, 3), int(sys.argv[1])
side, found = round(count**0.5), []
with torch.inference_mode():
    for number in range(side * side):
        if number in (0, side * side // 4, side * side // 2):
            found.append(held())
        torch.nn.functional.conv2d(torch.rand(1, 3, 80 + number % side, 80 + number // side), kernel, groups=3)
found.append(held())
print(json.dumps(found))
"""


def growth(environment: dict[str, str], count: int = SIZES) -> tuple[float, float]:
    """MB that a process with nothing but PyTorch grows by in a quarter, and then in the second half, of `count` sizes of
    picture through one 3x3 convolution.

    Raises subprocess.CalledProcessError where the C library is not glibc 2.33 or newer.
    """
    plain = {name: value for name, value in os.environ.items() if name not in STEADY}
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(count)], env={**plain, **environment}, check=True, capture_output=True)
    start, quarter, half, end = json.loads(done.stdout)
    return quarter - start, end - half


def measure() -> Result:
    """The growth of PyTorch alone, as it is and with few plans. A failure means that the endurance is started wrongly."""
    result = Result("plans", f"{SIZES} sizes of picture through one 3x3 convolution in a process with nothing but PyTorch, twice")
    (first, last), (few_first, few_last) = growth({}), growth(STEADY)
    result.require(first > 10, f"PyTorch keeps no plans any more: {first:.1f} MB; the endurance needs no limits")
    result.require(abs(last) < 1, f"PyTorch grew by {last:.1f} MB in the second half: its plans do not end at 1,024")
    result.require(few_first < 2 and abs(few_last) < 1, f"the limits do not hold: {few_first:.1f} MB, then {few_last:.1f} MB")
    result.found = (
        f"as it is, {first:+.1f} MB in the first {SIZES // 4} sizes and {last:+.1f} MB in the last {SIZES // 2}; "
        f"with the limits under which endurance and control run, {few_first:+.1f} MB and {few_last:+.1f} MB"
    )
    return result
