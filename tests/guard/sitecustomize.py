"""Loaded by the interpreter when this folder is on PYTHONPATH: notes every attempt to leave the computer.

Each look-up of a name and each connection that is not loopback becomes a line of the file $LECTERN_TEST_CONTACTS.
"""

import os
import sys


def _watch(event: str, arguments: tuple) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host in ("None", "", "localhost", "::1", "0.0.0.0") or host.startswith("127."):
        return
    with open(os.environ["LECTERN_TEST_CONTACTS"], "a", encoding="utf-8") as file:
        file.write(f"{event} {host}\n")


if "LECTERN_TEST_CONTACTS" in os.environ:
    sys.addaudithook(_watch)
