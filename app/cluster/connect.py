"""Ray, started here or reached where it runs."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "ray.token"
STORE_BYTES = 200_000_000  # of Ray's object store here: documents pass through it in pieces
NAMESPACE = "lectern"


@contextmanager
def cluster(home: Path, where: str | None) -> Iterator[None]:
    """Ray, started here on loopback or reached where it runs; ended with the block.

    Args:
        where: HOST:PORT of a cluster that runs.

    Raises:
        ConfigError: Ray is not installed, or there is none.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if where is None:
        # Ray's processes talk over ports. They stay on loopback, and other accounts have not the token that they want.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_enable_metrics_collection"] = "0"
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"] = "token", str(_token(home))
    try:
        import ray
        import ray.serve  # it sets its log up
    except ImportError as error:
        raise ConfigError("Ray is not installed; `python launch.py setup --with ray` installs it") from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    here = {"object_store_memory": STORE_BYTES, "include_dashboard": False} if where is None else {"address": where}
    try:
        ray.init(
            namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, **here,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--ray {where}: cannot be reached ({error}); start it with `ray start --head`") from error
    try:
        yield
    finally:
        ray.shutdown()


def _token(home: Path) -> Path:
    """A secret of this data folder that Ray's processes know each other by."""
    path = home / TOKEN
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))
    return path
