"""Where FE2E files are looked for: the `fe2e` model folder and the pack's own `models/`."""

from __future__ import annotations

from pathlib import Path

import folder_paths

FOLDER = "fe2e"
EMBEDDED = Path(__file__).resolve().parent.parent / "models"
EXTENSIONS = {".safetensors", ".npz"}


def register() -> None:
    """Make ComfyUI know the folder `fe2e`; folders that extra_model_paths.yaml gave it come first and stay."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    folder_paths.add_model_folder_path(FOLDER, str(EMBEDDED))
    # A folder made by add_model_folder_path lists files of any kind; ours holds two kinds.
    folder_paths.folder_names_and_paths[FOLDER][1].update(EXTENSIONS)


def checkpoints() -> list[str]:
    """FE2E checkpoints to choose from, the embedded one first."""
    names = [n for n in folder_paths.get_filename_list(FOLDER) if n.endswith(".safetensors")]
    embedded = {p.name for p in EMBEDDED.glob("*.safetensors")}
    return sorted(names, key=lambda n: (n not in embedded, n))


def prompt_caches() -> list[str]:
    """Files of the `fe2e` folder that can hold an empty-prompt cache, .npz first."""
    embedded = {p.name for p in EMBEDDED.glob("*.safetensors")}
    names = [n for n in folder_paths.get_filename_list(FOLDER) if n not in embedded]
    return sorted(names, key=lambda n: (not n.endswith(".npz"), n))


def find(folder: str, name: str, what: str) -> str:
    """Full path of a file in a model folder; FileNotFoundError naming the input, the folder and what to do."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        places = ", ".join(folder_paths.get_folder_paths(folder))
        raise FileNotFoundError(f"{what}: there is no file '{name}' in the model folder '{folder}' ({places}); put it there and "
                                "refresh the node definitions (key R)")
    return path
