"""Measurements of this pack against the reference's procedure, each printed beside the counted operations.

`python -m benchmarks.macs`, `.cost`, `.cpu`, `.gpu` and `.loading`; each writes its section of docs/benchmarks.md
when asked with `--write`. They run from the repository root in the environment that `make setup` builds.
"""
