#!/usr/bin/env bash
# ray 2.60.0 (extra serve), Linux, Python 3.11: a Serve replica listens on all addresses of a computer whose Ray is on loopback.
# Expected: with Ray's node on 127.0.0.1 nothing of it can be reached from other computers.
# Seen: controller, raylet and workers listen on 127.0.0.1, each replica besides on [::]:PORT, which
# ray/serve/_private/replica.py names in so many words ("[::]:0"); there is no setting. Under RAY_AUTH_MODE=token calls
# to it want the token; without that mode, the default, they do not.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check "ray[serve]==2.60.0" psutil
cat > "$folder/listen.py" <<'PY'
import os

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_enable_metrics_collection": "0",
}
import psutil
import ray
from ray import serve

ray.init(include_dashboard=False, num_cpus=1, object_store_memory=100_000_000, log_to_driver=False)
serve.start(proxy_location="Disabled")


@serve.deployment(ray_actor_options={"num_cpus": 0})
class One:
    def pid(self):
        return os.getpid()


pid = serve.run(One.bind(), route_prefix=None).pid.remote().result()
loopback, beyond = set(), set()
for process in psutil.Process().children(recursive=True):
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            here = connection.laddr.ip.removeprefix("::ffff:") in ("127.0.0.1", "::1")
            (loopback if here else beyond).add(process.pid)
print("on loopback:", len(loopback) > 2, "beyond: the replica alone:", beyond == {pid})
serve.shutdown()
ray.shutdown()
PY
said="$("$folder/venv/bin/python" "$folder/listen.py" 2>/dev/null | grep '^on loopback')"
echo "$said"
[ "$said" = "on loopback: True beyond: the replica alone: True" ]
