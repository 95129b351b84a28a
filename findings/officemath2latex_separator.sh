#!/usr/bin/env bash
# officemath2latex 0.1.1 drops what stands between the parts of a bracket in a Word formula.
# ECMA-376 part 1, 22.1.2.24 and 22.1.2.98: a delimiter object (m:d) with several m:e shows m:sepChr between them, "|" when
# it is not given. A conditional probability P(A|B) written so comes out as P(AB).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q officemath2latex==0.1.1 lxml==6.1.3
"$place/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from lxml import etree
from officemath2latex import process_math_node

M = "http://schemas.openxmlformats.org/officeDocument/2006/math"
run = "<m:r><m:t>{}</m:t></m:r>"
formula = f'<m:oMath xmlns:m="{M}"><m:d><m:e>{run.format("A")}</m:e><m:e>{run.format("B")}</m:e></m:d></m:oMath>'
seen = process_math_node(etree.fromstring(formula)).replace(" ", "")
print("officemath2latex", version("officemath2latex"))
print("expected: a separator between A and B, as Word shows (A|B)")
print("seen:    ", seen)
sys.exit("AB" not in seen)  # fails once the separator is kept
PY
