"""Try what another account, program or site would try on a running Lectern: all of it has to be refused.

    python scripts/attack.py               # a table: case, refused or not
    python scripts/attack.py --only 8,17   # some of the cases
    python scripts/attack.py --tree PATH   # on another checkout, an older one say

Starts the app over a data folder that is thrown away, speaks to 127.0.0.1 alone, and uses harmless marker files. A case
is a function in scripts/attacks marked with @case that returns "" when it was refused, else what was reached. The exit
code is 1 when anything was reached. A whole run of this checkout writes benchmarks/results/attack.json, fault by fault,
with what was reached before any was mended; fault 12, a full disk, is tried by scripts/full_disk.py.
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
FULL_DISK = RESULT.with_name("full_disk.json")
# What was reached on commit 6c5f319.
BEFORE = {
    8: "other accounts had files of the owner read and removed; the data folder was 0755",
    9: "it opened empty, collected all blocks and replaced the last copy",
    10: "the claimed text stood in for the file's",
    11: "7.6 GB and 63 s for a file of 20 MB; a zip of 900 MB ran on for 30 s after it was told to end",
    12: "Lectern did not open on a full disk, so that nothing could be deleted",
    13: "values that are none were taken; 379 kB took 2.7 GB",
    14: "uploads, parts of them and of exports stayed",
    15: "2,000 nested folders raised, 20 MB of blanks took 54 s",
    16: "styles painted over the window, fetches were tried",
    17: "exports by part of an id, two Origins, bare refusals, 500 tracebacks in a log, 0.4 MB a page load",
}


def attack_all(tree: Path, wanted: set[int]) -> list[dict[str, Any]]:
    """One row for each case; prints them as they come."""
    from scripts.attacks import adding, data, page  # noqa: F401  they add their cases
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


def by_fault(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each fault with what was reached before, and what now: "" when everything was refused."""
    disk = json.loads(FULL_DISK.read_text(encoding="utf-8")) if FULL_DISK.exists() else {"wrong": ["not tried"]}
    table = []
    for fault, before in BEFORE.items():
        reached = [row["reached"] for row in rows if row["fault"] == fault and row["reached"]]
        reached += disk["wrong"] if fault == 12 else []
        table.append({"fault": fault, "before": before, "after": "; ".join(reached)})
    return table


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

        values = {"benchmark": "attack", "faults": by_fault(rows), "cases": rows, "reached": reached}
        values |= machine.describe()
        RESULT.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 1 if reached else 0


if __name__ == "__main__":
    sys.exit(main())
