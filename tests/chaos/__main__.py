"""`python -m tests.chaos --store sqlite --seconds 30`: one trial, its figures and its verdict."""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.trial import Trial, held
from tests.parts.postgres import cluster


def main() -> int:
    """Exit code 1 when something was lost, stuck, wrong or done twice, or too little was tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--faults", type=int, default=0, help="go on until there were so many")
    parser.add_argument("--runs", type=int, default=0, help="go on until there were so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bug", default="", help="plant a fault (see planted.py)")
    arguments = parser.parse_args()
    trial = Trial(
        arguments.seconds, arguments.faults, arguments.runs, seed=arguments.seed, bug=arguments.bug
    )
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        database = parts.enter_context(cluster()) if arguments.store == "postgres" else None
        url = database.url if database else f"sqlite:///{folder / 'store.sqlite'}"
        judged, faults = held(trial, folder, url, database)
        print(f"{arguments.store} {arguments.bug}: faults {faults.total()} {dict(faults)}")
        print(judged)
        for name, runs in vars(judged).items():
            if isinstance(runs, list) and runs:
                print(f"  {name}: {runs[:5]}")
        enough = judged.runs > 0 and judged.runs >= trial.runs and faults.total() >= trial.faults
        if not enough:
            print("  the time was over before there were so many")
    return 0 if judged.holds and enough else 1


if __name__ == "__main__":
    sys.exit(main())
