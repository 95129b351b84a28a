#!/usr/bin/env bash
# trafilatura 2.3.1 cannot be imported after pip 23.2.1 installed it beside lxml 6.1.3.
# jusText 3.0.2, which trafilatura needs, asks for "lxml[html_clean]"; lxml 6.1.3 writes that extra as "html-clean". Both
# are one name by PEP 685, but pip 23.2.1, which Python 3.11 brings along, compares them as they are written: it warns,
# leaves lxml_html_clean out and ends with success.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q pip==23.2.1
"$place/venv/bin/pip" install -q trafilatura==2.3.1 justext==3.0.2 lxml==6.1.3 2>&1 | grep -i "does not provide the extra"
"$place/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

print("trafilatura", version("trafilatura"), "justext", version("justext"), "lxml", version("lxml"), "pip", version("pip"))
print("expected: `import trafilatura` works, as its installation ended with success")
try:
    import trafilatura
except ImportError as error:
    print("seen:     ImportError:", str(error).split("\n")[0])
    sys.exit(0)
print("seen:     it works")
sys.exit(1)  # the behaviour has changed
PY
