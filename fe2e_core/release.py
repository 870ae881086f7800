"""The released files: where they are published, how large they are, their SHA-256 digests and licences."""

from __future__ import annotations

from dataclasses import dataclass

HUGGING_FACE = "https://huggingface.co"
GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class ReleasedFile:
    """One file of the release.

    part: what it is to the pack. repository, revision, path: on Hugging Face, or on GitHub where `github` is true.
    folder, name: where ComfyUI looks for it below its `models`. bytes, sha256: None where nobody has published them.
    git_blob: the id that git gives its content (SHA-1 of a header and the bytes), for files of a repository.
    """

    part: str
    repository: str
    revision: str
    path: str
    folder: str
    name: str
    license: str
    license_url: str
    bytes: int | None = None
    sha256: str | None = None
    git_blob: str | None = None
    github: bool = False

    @property
    def address(self) -> str:
        """The path of its address, the same on every mirror."""
        middle = self.revision if self.github else f"resolve/{self.revision}"
        return f"{self.repository}/{middle}/{self.path}"

    @property
    def host(self) -> str:
        return GITHUB if self.github else HUGGING_FACE


FILES = {file.part: file for file in (
    ReleasedFile("transformer", "exander/FE2E", "main", "pretrain/step1x-edit-i1258.safetensors",
                 "diffusion_models", "step1x-edit-i1258.safetensors",
                 "Apache-2.0 (Step1X-Edit v1.0)", "https://huggingface.co/stepfun-ai/Step1X-Edit",
                 24_855_692_578, "f378db311e6db3535bbed367160fda7f65661c1d2474cffeaded47288c00a24a"),
    ReleasedFile("lora", "exander/FE2E", "main", "LDRN.safetensors", "loras", "LDRN.safetensors",
                 "MIT (FE2E)", "https://github.com/AMAP-ML/FE2E",
                 612_742_480, "9c2112d3697d6057a60d59b3d83fc0d88ea12d73f933666eded0c5dbf5e0f410"),
    ReleasedFile("vae", "exander/FE2E", "main", "pretrain/vae.safetensors", "vae", "ae.safetensors",
                 "Apache-2.0 (FLUX.1-schnell autoencoder)", "https://huggingface.co/black-forest-labs/FLUX.1-schnell",
                 335_304_388, "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38"),
    ReleasedFile("prompt-cache", "AMAP-ML/FE2E", "262d4c9d4c37752c984304f57ca7d7066f34ad5d", "latent/no_info.npz",
                 "fe2e", "no_info.npz", "MIT (FE2E)", "https://github.com/AMAP-ML/FE2E",
                 git_blob="cda077b9c036ca576d7f96eb7633dff1a26c2ea3", github=True),
)}
#: Of the whole, for the metadata of a packed file.
LICENSE = "; ".join(f"{file.part}: {file.license}" for file in FILES.values() if file.part != "prompt-cache")


def released_as(sha256: str) -> str | None:
    """The part of the release that a digest belongs to, None when it is another file."""
    return next((part for part, file in FILES.items() if file.sha256 == sha256), None)
