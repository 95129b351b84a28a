"""The child process that reads one file: `python -m app.ingest.worker`, a request on standard input.

Hostile files can hang a reader or eat its memory, and pdfium allows one thread only, so each file gets a process
that can be killed. The request names the module (its `events` takes the request) and the limit of memory. It prints
one JSON object per line, then `{"end": true}`; or `{"failed": kind, "detail": ...}` when the file cannot be opened.
It ends with its parent.
"""

import importlib
import json
import logging
import os
import sys
import threading

DEEPEST = 20_000  # calls: a page may be nested 2,048 deep


def limit_memory(size_bytes: int) -> None:
    """Let this process have so much address space and no more, where the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError) as error:  # Windows has no such limit, macOS refuses it
        logging.getLogger(__name__).info("no memory limit: %s", error)


def _end_with_parent() -> None:
    """Standard input stays open as long as the parent lives."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    output, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not mix with the events
    request = json.loads(sys.stdin.readline())
    limit_memory(request["memory_bytes"])
    sys.setrecursionlimit(DEEPEST)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for event in importlib.import_module(request["module"]).events(request):
        output.write(json.dumps(event) + "\n")
        output.flush()
    output.write('{"end": true}\n')
    output.flush()


if __name__ == "__main__":
    main()
