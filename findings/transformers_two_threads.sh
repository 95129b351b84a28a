#!/usr/bin/env bash
# transformers 5.23.0 imported by two threads at once, Python 3.11: one of them keeps a module without its names.
# Expected: `import transformers` in a second thread waits for the first one and gives the same module.
# Seen: it waits, and gives another module, which has no AutoConfig (AttributeError) for as long as the importer keeps it,
# while sys.modules holds the right one. transformers/__init__.py replaces its entry in sys.modules while it runs; Python
# looked the entry up before it waited, and does not look again.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check transformers==5.23.0
cat > "$folder/two.py" <<'PY'
import importlib
import sys
import threading
import time

second = []


def late():
    while "transformers" not in sys.modules:
        time.sleep(0)
    import transformers  # the first thread is in the middle of it

    second.append(transformers)


thread = threading.Thread(target=late)
thread.start()
import transformers

thread.join()
right = sys.modules["transformers"]
print("first:", hasattr(transformers, "AutoConfig"), "second:", hasattr(second[0], "AutoConfig"),
      "the same:", second[0] is right, "later:", hasattr(importlib.import_module("transformers"), "AutoConfig"))
PY
said="$("$folder/venv/bin/python" "$folder/two.py" 2>/dev/null)"
echo "AutoConfig is there: $said"
[ "$said" = "first: True second: False the same: False later: True" ]
