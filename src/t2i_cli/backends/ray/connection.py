"""Starts Ray on this machine, or connects to a cluster, within seconds; and what a cluster has."""

import functools
import importlib
import importlib.util
import logging
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from threading import Event as Flag
from typing import Any
from urllib.parse import urlsplit

from t2i_cli import __version__
from t2i_cli.backends.ray.connection_attempts import (
    connect_within_limit,
    may_succeed_later,
    proxy_error,
)
from t2i_cli.backends.ray.options import RayOptions
from t2i_cli.errors import InputError, RemoteError, T2IError, error_reason

CLUSTER_TIMEOUT = 5.0
"""Seconds that a cluster's address has to answer."""
PROBE_TIMEOUT = 60.0
"""Seconds that a node has to say which versions it has; it may have to start a process for that."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Memory for images on their way, of a Ray that is started on this machine."""
DIRECT_RESULT_BYTES = 8 * 10**6
"""Largest result that a worker of a Ray that is started here sends in its answer itself.

Through the object store, as Ray has it from 100 kB on, an image costs the driver a seventh more.
Of a cluster's nodes it is their own setting, by the same environment variable.
"""
COMPARED_PACKAGES = ("torch", "diffusers")
"""Packages whose versions must be the driver's, beside t2i itself: images depend on them."""
_SCHEME = "ray://"

Versions = Mapping[str, str | None]
"""The version of each package by its name, `None` where it is not installed."""


@dataclass(frozen=True, kw_only=True)
class ClusterNode:
    """A node that is alive."""

    id: str
    name: str
    gpus: float
    cpus: float


def require_ray() -> None:
    """Raise InputError if the package ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "--backend ray needs the package ray[client], which is not installed.",
            hint="Install it with: pip install 't2i-cli[ray]'",
            field="backend",
        )


def import_ray() -> Any:  # noqa: ANN401 - ray's module
    """The package ray, which sends no usage statistics and logs errors only."""
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its own handler prints addresses at SIGTERM and aborts the process, which is to end by itself.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    # Without it Ray takes a child of process 1 for one whose raylet has ended, and exits with 1.
    os.environ.setdefault("RAY_RAYLET_PID", str(os.getpid()))
    os.environ.setdefault("RAY_max_direct_call_object_size", str(DIRECT_RESULT_BYTES))
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    # It prints a page on standard output for each process that died, whatever it is told.
    module: Any = importlib.import_module("ray._private.worker")
    if hasattr(module, "print_to_stdstream"):
        module.print_to_stdstream = lambda *_, **__: None
    return ray


def connect_ray(options: RayOptions, closing: Flag) -> bool:
    """Start Ray on this machine or connect to a cluster, and compare versions. Raises T2IError.

    Ray's processes on this machine end with the calling thread. Returns whether it was connected
    now, and not before in this process, which has at most one connection. No attempt follows
    another once `closing` is set.
    """
    if not options.starts_ray:
        check_address(options.address)
    ray = import_ray()
    if ray.is_initialized():
        compare_nodes(ray, cluster_nodes(ray))
        return False
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": False,
    }
    if options.starts_ray:
        quiet |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        connect_within_limit(ray, lambda: ray.init(address=options.address, **quiet), closing)
    except Exception as error:  # noqa: BLE001 - Ray raises what it met
        with suppress(Exception):
            ray.shutdown()
        raise ray_error(options, error) from error
    if not options.starts_ray:
        try:
            compare_nodes(ray, cluster_nodes(ray))
        except BaseException:
            with suppress(Exception):
                ray.shutdown()
            raise
    return True


def ray_error(options: RayOptions, error: Exception) -> T2IError:
    """The error of a Ray that did not start, or did not let this process in."""
    # A server's own traceback ends with what it met.
    last = str(error).strip().splitlines()[-1:] if "Traceback" in str(error) else []
    reason = error_reason(Exception(*last) if last else error).rstrip(".")
    if options.starts_ray:
        return RemoteError(f"Ray did not start on this machine: {reason}.")
    if isinstance(error, ConnectionError) and options.address == "auto":
        return RemoteError(
            "No Ray runs on this machine.",
            hint="Leave --address away to have one started, or start it with: ray start --head",
        )
    if options.address.startswith(_SCHEME) and may_succeed_later(error):
        return proxy_error(options.address, reason)
    return RemoteError(f"The Ray cluster at {options.address} lets nobody in: {reason}.")


def check_address(address: str) -> None:
    """Raise RemoteError if nothing of Ray answers at the address within CLUSTER_TIMEOUT.

    Ray itself takes 30 seconds to say so.
    """
    if address == "auto":
        return
    client = address.startswith(_SCHEME)
    parts = urlsplit(address if client else f"{_SCHEME}{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise InputError(f"--address {address} has no host and port.", field="ray_address")
    try:
        socket.create_connection((host, port), CLUSTER_TIMEOUT).close()
    except OSError as error:
        raise RemoteError(
            f"The Ray cluster at {address} cannot be reached: {_socket_reason(error)}.",
            hint="See that its head node runs, and that its port is open from here.",
        ) from error
    require_ray()
    if os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
        return  # whether it speaks gRPC is seen when Ray connects with its certificates
    import grpc

    channel = grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=CLUSTER_TIMEOUT)
    except grpc.FutureTimeoutError as error:
        raise RemoteError(
            f"What answers at {address} is no Ray cluster.",
            hint="Ray's client port is 10001 (ray://host:10001), that of its head node 6379.",
        ) from error
    finally:
        channel.close()


def _socket_reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {CLUSTER_TIMEOUT:g} s"
    return error_reason(OSError(error.strerror or str(error))).rstrip(".")


def cluster_nodes(ray: Any) -> list[ClusterNode]:  # noqa: ANN401 - ray's module
    """The nodes that are alive."""
    return [
        ClusterNode(
            id=node["NodeID"],
            name=node.get("NodeManagerHostname") or node.get("NodeName") or node["NodeID"][:8],
            gpus=node["Resources"].get("GPU", 0.0),
            cpus=node["Resources"].get("CPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def worker_capacity(nodes: Sequence[ClusterNode], options: RayOptions) -> int:
    """How many workers the nodes have room for: by their GPUs, or one on each node without."""
    if not options.uses_gpus:
        return sum(node.cpus > 0 for node in nodes)
    share = options.gpus_per_worker
    return sum(math.floor(node.gpus / share + 1e-6) for node in nodes)


def worker_cpus(nodes: Sequence[ClusterNode], workers: int) -> float:
    """The CPUs of a worker that computes on them: a fair share, and no more than a node has."""
    usable = [node.cpus for node in nodes if node.cpus > 0]
    if not usable:
        return 1.0
    share = min(sum(usable) / max(1, workers), *usable)
    return float(math.floor(share)) if share >= 1 else share


def no_gpu_error(options: RayOptions) -> T2IError:
    """The error of a cluster without a GPU."""
    where = "This machine" if options.starts_ray else f"The Ray cluster at {options.address}"
    more = (
        ""
        if options.starts_ray
        else "; --workers N waits for nodes that the cluster starts when they are asked for"
    )
    return RemoteError(f"{where} has no GPU.", hint=f"--device cpu computes without one{more}.")


@functools.cache
def own_versions() -> Versions:
    """The versions of this process that a worker must have, too."""
    return {"t2i": __version__} | {name: metadata.version(name) for name in COMPARED_PACKAGES}


def find_versions() -> Callable[[Sequence[str]], dict[str, str | None]]:
    """A function that finds the versions of t2i and other packages in the process that runs it.

    It is defined inside, so that Ray sends its code: the process may have no t2i, or another one.
    """

    def find(packages: Sequence[str]) -> dict[str, str | None]:
        from importlib import metadata

        found: dict[str, str | None] = {}
        try:
            import t2i_cli

            found["t2i"] = t2i_cli.__version__
        except ImportError:
            found["t2i"] = None
        for name in packages:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = None
        return found

    return find


def compare_versions(node: str, found: Versions) -> None:
    """Raise RemoteError that names what differs between a node and this machine.

    The part of a version that names a build, as +cu130, may differ.
    """
    differing = []
    for name, own in own_versions().items():
        version = found.get(name)
        if (version or "").partition("+")[0] != (own or "").partition("+")[0]:
            differing.append(f"{name} {version or 'not at all'} where this machine has {own}")
    if differing:
        raise RemoteError(
            f"The node {node} has {', and '.join(differing)}.",
            hint="Install the same versions on every node: images depend on them.",
        )


def compare_nodes(ray: Any, nodes: Sequence[ClusterNode]) -> None:  # noqa: ANN401 - ray's module
    """Ask every node that can compute for its versions. Raises RemoteError for one that differs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(find_versions())
    asked = {
        probe.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote(COMPARED_PACKAGES): node
        for node in nodes
        if node.gpus or node.cpus
    }
    if not asked:
        return
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_TIMEOUT)
    for reference in ready:
        # A node that has left meanwhile, or breaks, is seen when a worker starts there.
        with suppress(ray.exceptions.RayError):
            compare_versions(asked[reference].name, ray.get(reference))
