"""Bounded fuzzing of every file reader: `python -m tools.fuzz --seconds 60 --seed 1`."""
