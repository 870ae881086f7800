"""`python -m tools.fuzz --seconds 60 --seed 1`: damaged files for every reader; exit status 1 when one fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.fuzz.campaign import keep, new_seed, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument("--inputs", type=int, default=10**9, help="how many files at most")
    parser.add_argument("--seed", type=int, help="of the damage; a new one when not given")
    parser.add_argument("--targets", nargs="*", default=[], help="only these readers (default: all)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds after which a reader hangs")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    arguments = parser.parse_args()
    seed = new_seed() if arguments.seed is None else arguments.seed
    outcome = run(seed, arguments.seconds, arguments.inputs, arguments.targets, arguments.patience)
    print(f"seed {seed}: {outcome.inputs} inputs in {outcome.seconds:.0f} s, {len(outcome.failures)} failures, "
          f"{outcome.workers} processes")
    for name, count, accepted, refused, failed in outcome.table():
        print(f"  {name:16} {count:7} inputs: {accepted} accepted, {refused} refused, {failed} failed")
    for failure, count in outcome.distinct():
        print(f"FAILED {count} times, first input {failure.number} ({failure.target}, {failure.file}): {failure.verdict}: "
              f"{failure.text}")
    if arguments.keep and outcome.failures:
        keep(outcome, arguments.keep)
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
