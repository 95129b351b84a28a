#!/usr/bin/env bash
# uvicorn 0.54.0 on Linux, Python 3.11: served from `Config.bind_socket()` (what --workers and --reload do too), an answer
# on a kept connection takes 40 ms and more; from `host` and `port` it takes about 1 ms. No warning.
# Expected: the same time both ways. Seen: asyncio sets TCP_NODELAY only on sockets whose `proto` is IPPROTO_TCP;
# bind_socket makes its socket without a protocol's number, so `proto` is 0 on every accepted connection, and the body,
# which is written after the head, waits until the client has acknowledged the head.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check uvicorn==0.54.0 h11==0.16.0
cat > "$folder/delay.py" <<'PY'
import http.client
import socket
import statistics
import sys
import threading
import time

import uvicorn


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def median_ms(own_socket):
    config = uvicorn.Config(app, host="127.0.0.1", port=free_port(), log_level="error", lifespan="off", loop="asyncio", http="h11")
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()] if own_socket else None
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    connection, taken = http.client.HTTPConnection("127.0.0.1", config.port), []
    for _ in range(21):
        began = time.perf_counter()
        connection.request("GET", "/")
        connection.getresponse().read()
        taken.append(1000 * (time.perf_counter() - began))
    connection.close()
    server.should_exit = True
    thread.join()
    return statistics.median(taken)


with_port, with_socket = median_ms(False), median_ms(True)
print(f"median of 21 answers: host and port {with_port:.1f} ms, bind_socket {with_socket:.1f} ms")
sys.exit(0 if with_port < 20 < with_socket else 1)
PY
"$folder/venv/bin/python" "$folder/delay.py"
