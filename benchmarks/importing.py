"""What importing the pack costs and changes, in a process where ComfyUI has been imported already.

    python -m benchmarks.importing [--runs 5] [--write]     # times, written to docs/benchmarks.md
    python -m benchmarks.importing --probe                  # one process: times, modules and changes as JSON
    python -X importtime -m benchmarks.importing --probe    # Python's own list of every module, on stderr

The clock runs over all that ComfyUI does with a pack at its start: import, entry point, list of nodes, schemas.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

#: Modules of ComfyUI whose attributes a pack might replace.
COMFYUI = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "nodes",
    "node_helpers",
    "execution",
)


def global_state() -> dict[str, Any]:
    """Everything a pack could change for others without being noticed, each as something comparable."""
    import numpy
    import torch

    loggers = [
        logging.getLogger(name)
        for name in ("", *sorted(logging.root.manager.loggerDict))
        if "fe2e" not in name
    ]
    return {
        "sys.path": list(sys.path),
        "sys.meta_path": [id(finder) for finder in sys.meta_path],
        "sys.path_hooks": [id(hook) for hook in sys.path_hooks],
        "sys.excepthook": id(sys.excepthook),
        "recursion limit": sys.getrecursionlimit(),
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "warning filters": [repr(entry) for entry in warnings.filters],
        "showwarning": id(warnings.showwarning),
        "logging": {
            log.name: (
                log.level,
                log.propagate,
                log.disabled,
                [id(h) for h in log.handlers],
                [id(f) for f in log.filters],
            )
            for log in loggers
        },
        "logging disabled below": logging.root.manager.disable,
        "signal handlers": {int(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "socket timeout": socket.getdefaulttimeout(),
        "numpy errors": numpy.geterr(),
        "numpy printing": repr(numpy.get_printoptions()),
        "numpy random": numpy.random.get_state()[1].tolist(),
        "torch dtype": str(torch.get_default_dtype()),
        "torch device": str(torch.get_default_device()),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch grad": torch.is_grad_enabled(),
        "torch random": torch.random.get_rng_state().tolist(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "torch cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
        "torch matmul": torch.get_float32_matmul_precision(),
        "ComfyUI": comfyui_attributes(),
    }


def comfyui_attributes() -> dict[str, int]:
    """Identity of every attribute of ComfyUI's modules and of their classes: a replaced function shows."""
    found = {}
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] not in COMFYUI or module is None:
            continue
        for key, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == name:
                found |= {
                    f"{name}.{key}.{part}": id(member)
                    for part, member in vars(value).items()
                    if callable(member) or isinstance(member, classmethod | staticmethod | property)
                }
            if callable(value):
                found[f"{name}.{key}"] = id(value)
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what changed; inside a dict, of its entries."""
    changed = []
    for name, old in before.items():
        new = after[name]
        if isinstance(old, dict):
            changed += [
                f"{name}: {key}" for key in sorted({*old, *new}, key=str) if old.get(key) != new.get(key)
            ]
        elif old != new:
            changed.append(name)
    return changed


def probe() -> dict[str, Any]:
    """Imports ComfyUI, then the pack: {"wall" and "cpu" in milliseconds, "modules", "changes", "nodes"}."""
    from tests.harness.inprocess import PACK, import_comfyui, import_pack

    import_comfyui()
    import folder_paths
    from comfy_api.latest import ComfyExtension  # noqa: F401

    import nodes  # noqa: F401  # ComfyUI's, with everything its own nodes pull in

    state, loaded, folders = global_state(), set(sys.modules), set(folder_paths.folder_names_and_paths)
    wall, cpu = time.perf_counter(), time.process_time()
    pack = import_pack()

    async def start() -> list[str]:
        extension = await pack.comfy_entrypoint()
        await extension.on_load()
        return [node.GET_SCHEMA().node_id for node in await extension.get_node_list()]

    with asyncio.Runner() as runner:
        ids = runner.run(start())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    changes = differences(state, global_state())
    folders = set(folder_paths.folder_names_and_paths) - folders
    modules = {name for name in set(sys.modules) - loaded if name.split(".")[0] != PACK}
    return {
        "wall": 1e3 * wall, "cpu": 1e3 * cpu, "modules": sorted(modules), "changes": changes,
        "folders": sorted(folders), "nodes": ids,
    }  # fmt: skip


def fresh_probe() -> dict[str, Any]:
    """`probe` in a process of its own, from bytecode if a run before has left it, as in every start of ComfyUI but the
    first. RuntimeError with its last words when it fails.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.importing", "--probe"],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(probe()))
        return
    from benchmarks.report import Table, machine, section, versions

    fresh_probe()  # leaves the bytecode
    found = [fresh_probe() for _ in range(options.runs)]
    rows = [
        [
            name,
            *(
                f"{pick(run[key] for run in found):.0f}"
                for pick in (min, lambda v: sorted(v)[options.runs // 2])
            ),
        ]
        for name, key in (("processor time", "cpu"), ("wall clock", "wall"))
    ]
    last = found[-1]
    text = "\n\n".join([
        f"Import, entry point, {len(last['nodes'])} nodes and their schemas, after torch and ComfyUI were imported, in "
        f"{options.runs} fresh processes. Modules of others that it pulls in: {', '.join(last['modules']) or 'none'}. "
        f"Global state that it changes: {', '.join(last['changes']) or 'none'}, beyond the model folder "
        f"`{'`, `'.join(last['folders'])}`.",
        Table(["milliseconds", "least", "median"], rows).markdown(),
    ])  # fmt: skip
    where = f"{machine()}; {versions('torch', 'numpy')}"
    section(
        "importing",
        "Importing the pack",
        text,
        "python -m benchmarks.importing --write",
        options.write,
        where,
    )


if __name__ == "__main__":
    main()
