#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` groups nothing and says nothing.
# Expected: tests marked with one xdist_group run in one worker, and their ids end with "@" and the group's name, as with
# pytest 9.1.1. Seen: with 9.2.0 ids have no group, and tests of one group run in both workers; exit code 0, no warning.
# The worker writes the group into the item's private id, which 9.2.0 no longer reads.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/test_groups.py" <<'PY'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_where(number, request):
    time.sleep(0.3)
    with open("where.txt", "a") as file:
        file.write(f"{os.environ['PYTEST_XDIST_WORKER']} {'@' in request.node.nodeid}\n")
PY
workers() { # pytest's version -> how many workers ran the group, and whether ids name it
    "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
    rm -f "$folder/where.txt"
    (cd "$folder" && venv/bin/python -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_groups.py) >/dev/null
    echo "$(cut -d' ' -f1 "$folder/where.txt" | sort -u | wc -l) $(cut -d' ' -f2 "$folder/where.txt" | sort -u)"
}
before="$(workers 9.1.1)"
after="$(workers 9.2.0)"
echo "workers that ran one group, and whether ids name it: pytest 9.1.1: $before; pytest 9.2.0: $after"
[ "$before" = "1 True" ] && [ "$after" = "2 False" ]
