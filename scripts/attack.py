"""Try what another account, program or site would try on a running Lectern: all of it has to be refused.

    python scripts/attack.py               # a table: case, refused or not
    python scripts/attack.py --only 8,17   # some of the cases
    python scripts/attack.py --tree PATH   # on another checkout, an older one say

Starts the app over a data folder that is thrown away, speaks to 127.0.0.1 alone, and uses harmless marker files. A case
is a function in scripts/attacks marked with @case that returns "" when it was refused, else what was reached. The exit
code is 1 when anything was reached. A whole run of this checkout writes benchmarks/results/attack.json.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULT = ROOT / "benchmarks" / "results" / "attack.json"


def attack_all(tree: Path, wanted: set[int]) -> list[dict[str, Any]]:
    """One row for each case; prints them as they come."""
    from scripts.attacks import data, page  # noqa: F401  they add their cases
    from scripts.attacks.target import CASES, running

    rows = []
    with tempfile.TemporaryDirectory() as folder, running(tree, Path(folder)) as target:
        for number, name, attack in sorted(CASES, key=lambda case: case[0]):
            if wanted and number not in wanted:
                continue
            started = time.monotonic()
            try:
                outcome = attack(target, Path(folder))
            except Exception as error:
                outcome = f"could not be tried: {type(error).__name__}: {error}"
            seconds = round(time.monotonic() - started, 1)
            rows.append({"fault": number, "case": name, "reached": outcome, "seconds": seconds})
            print(f"{number:>3}  {name:<62} {'NOT REFUSED: ' + outcome[:200] if outcome else 'refused'}", flush=True)
    return rows


def main() -> int:
    """Parse flags, try, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to start (this one)")
    parser.add_argument("--only", default="", help="numbers of cases, with commas")
    args = parser.parse_args()
    rows = attack_all(args.tree.resolve(), {int(number) for number in args.only.split(",") if number})
    reached = [row["case"] for row in rows if row["reached"]]
    if not args.only and args.tree == ROOT:
        from benchmarks import machine

        values = {"benchmark": "attack", "cases": rows, "reached": reached, **machine.describe()}
        RESULT.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 1 if reached else 0


if __name__ == "__main__":
    sys.exit(main())
