"""Replicas on Ray Serve, and the ingress in this process. Ray is imported inside: without it nothing else is missed."""

import asyncio
import logging
import os
import secrets
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.routing import Mount

from app.cluster.bridge import Head, Request
from app.cluster.connect import cluster
from app.cluster.engine import Engine, Page
from app.cluster.front import Front, GoneError
from app.errors import LecternError, ModelError
from app.guard import Guard, OnlyPrograms, address, new_key
from app.server import ADDRESS, Network, bind, has_display, run_server, show_page
from app.settings import Settings
from app.store.home import acquire, programs_key

log = logging.getLogger(__name__)
DRAIN_S = 120.0


class CopyEngine(Engine):
    """A replica that gets documents from another one directly."""

    async def take_from(self, document: str, app: str) -> None:
        """Keep a document that the replica of another application holds."""
        from ray import serve

        pieces = serve.get_app_handle(app).options(stream=True).give.remote(document)
        await self.take(document, pieces)

    async def pid(self) -> int:
        return os.getpid()

    def __del__(self) -> None:  # Ray Serve calls it when it ends a replica in good order
        if hasattr(self, "reading"):
            self.close()


class RayReplica:
    """A replica by its handle."""

    def __init__(self, name: str) -> None:
        self.name, self.app = name, f"lectern-{name}"
        self._handle: Any = None

    def use(self, handle: Any) -> None:
        """Ask this deployment from now on."""
        self._handle = handle

    async def ask(self, request: Request) -> AsyncGenerator[Head | bytes, None]:
        with _told():
            parts = self._handle.options(stream=True).ask.remote(request)
            try:
                async for part in parts:
                    yield part
            except (asyncio.CancelledError, GeneratorExit):
                parts.cancel()
                raise

    async def documents(self) -> list[tuple[str, float]]:
        with _told():
            return await self._handle.documents.remote()

    async def find(self, name: str) -> str | None:
        with _told():
            return await self._handle.find.remote(name)

    async def copy(self, document: str, to: "RayReplica") -> None:
        with _told():
            await to._handle.take_from.remote(document, self.app)


@contextmanager
def _told() -> Iterator[None]:
    """Ray's errors as ours."""
    import ray.exceptions
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except (ray.exceptions.RayActorError, RayServeException) as error:
        raise GoneError(str(error)) from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, LecternError) else error from error


@dataclass(frozen=True)
class Plan:
    """What the replicas are given.

    Attributes:
        gpus: of each replica.
        nodes: addresses of the machines that replicas are tied to, in turn; none where they share a folder or machine.
    """

    settings: Settings
    page: Page | None
    gpus: float = 0.0
    nodes: tuple[str, ...] = ()

    def deploy(self, replica: RayReplica) -> None:
        """Start a replica, or in its place a new one; returns when it answers.

        Raises:
            ModelError: it does not start.
        """
        from ray import serve

        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": self.gpus}
        if self.nodes:
            options["resources"] = {f"node:{self.nodes[int(replica.name) % len(self.nodes)]}": 0.001}
        made = serve.deployment(
            name="engine", max_ongoing_requests=1000, ray_actor_options=options, max_replicas_per_node=None,
            graceful_shutdown_timeout_s=DRAIN_S, graceful_shutdown_wait_loop_s=0.5,
            health_check_period_s=2, health_check_timeout_s=60,
        )(CopyEngine)  # fmt: skip
        page = self.page if replica.name == "0" else None
        try:
            bound = made.bind(replica.name, self.settings, page)
            replica.use(serve.run(bound, name=replica.app, route_prefix=None))
        except RuntimeError as error:
            raise ModelError(f"replica {replica.name} did not start: {error}") from error


def planned(settings: Settings, page: Page | None, replicas: int) -> Plan:
    """Share out threads and GPUs; tie replicas to machines whose disks are not one."""
    import ray

    resources, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    gpus = min(1.0, resources.get("GPU", 0.0) / replicas)
    if settings.threads is None:
        cores = min(node["Resources"].get("CPU", 1.0) for node in nodes)
        settings = replace(settings, threads=max(1, int(cores * len(nodes)) // max(replicas, len(nodes))))
    own = len(nodes) > 1 and not _shared(settings.folder, nodes)
    return Plan(settings, page, int(gpus * 100) / 100, tuple(n["NodeManagerAddress"] for n in nodes) if own else ())


def _shared(home: Path, nodes: list[dict[str, Any]]) -> bool:
    """Whether all machines see this data folder."""
    import ray

    mark = home / f"shared-{secrets.token_hex(8)}"
    mark.touch()
    try:
        look = ray.remote(num_cpus=0)(Path.exists)
        at = [{f"node:{node['NodeManagerAddress']}": 0.001} for node in nodes]
        return all(ray.get([look.options(resources=where).remote(mark) for where in at]))
    finally:
        mark.unlink()


def serve(
    settings: Settings,
    replicas: int,
    network: Network,
    *,
    where: str | None = None,
    port: int | None = None,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve with several replicas until Ctrl-C or SIGTERM. SIGHUP restarts them one by one, and no answer is lost.

    Args:
        where: HOST:PORT of a Ray cluster that runs; without one, Ray is started here.

    Raises:
        ConfigError: Ray is not there, or no port can be used.
        ModelError: a replica does not start.
        BusyError: another process owns the data folder.
    """
    acquire(settings.folder).release()
    listener = bind(port, network.host)
    port = listener.getsockname()[1]
    key, programs = new_key(), programs_key(settings.folder)
    url = address(f"http://{ADDRESS}:{port}/", key)
    made = {str(number): RayReplica(str(number)) for number in range(replicas)}

    def ready() -> None:
        say(f"{replicas} replicas answer")
        if network.beyond:
            say(f"Programs with a key reach Lectern at {network.url(port)}")
            return
        say(f"Lectern is open at {url}")
        if browser and has_display():
            threading.Thread(target=show_page, args=(url, settings.folder), daemon=True).start()

    try:
        with cluster(settings.folder, where):
            plan = planned(settings, None if network.beyond else Page(key, programs, url), replicas)
            with _deployed(plan, made, say):
                front = Front(made, page=not network.beyond)
                beyond = OnlyPrograms() if network.beyond else None
                guard = Middleware(Guard, key=key, programs=programs, beyond=beyond)
                life = _life(front, lambda name: plan.deploy(made[name]))
                app = Starlette(routes=[Mount("/", front)], middleware=[guard], lifespan=life)
                run_server(lambda stop: app, listener, ready, network)
    finally:
        listener.close()


@contextmanager
def _deployed(plan: Plan, replicas: dict[str, RayReplica], say: Callable[[str], None]) -> Iterator[None]:
    """Replicas that answer for the time of the block, and end in good order after it."""
    from ray import serve

    serve.start(proxy_location="Disabled")
    try:
        for replica in replicas.values():
            say(f"Starting replica {int(replica.name) + 1} of {len(replicas)}")
            plan.deploy(replica)
        yield
    finally:
        with ThreadPoolExecutor(len(replicas)) as pool:  # each waits for what it answers
            list(pool.map(lambda replica: serve.delete(replica.app), replicas.values()))


def _life(front: Front, deploy: Callable[[str], None]) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """What runs beside the requests: copies of hot documents, and a restart when it is asked for."""

    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        await front.look()
        asked = asyncio.Event()
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
        work = (front.settle(), front.spread(), _restarts(front, deploy, asked))
        tasks = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return life


async def _restarts(front: Front, deploy: Callable[[str], None], asked: asyncio.Event) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            await front.restart(lambda name: run_in_threadpool(deploy, name))
        except LecternError as error:
            log.error("the restart ended early: %s", error)
