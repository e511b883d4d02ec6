"""A Ray to work on: one of its own on this machine, or a cluster's; and how its processes are made like ours.

Ray is imported inside functions only, so that who needs no workers needs no Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from recbole_robust.types import UserError

# On a busy machine Ray's own processes take longer to start than the 30 and 60 seconds that it gives them: its node is
# gone before it has begun, and a sweep waits for ever.
SLOW_START = {"RAY_agent_register_timeout_ms": "600000", "RAY_worker_register_timeout_seconds": "600"}
OBJECT_STORE = 80 << 20  # bytes, Ray's least or so: a cell and its result are some kilobytes


@contextlib.contextmanager
def ray_cluster(workers: int, address: str | None = None, gpus: int | None = None) -> Iterator[int]:
    """Ray inside this block: the one of ``address``, or one of its own on this machine, which only it can reach.

    Gives the number of workers that there is room for: ``workers``, or one a CPU where that is 0. A Ray that this
    process is connected to already is used, and stays.

    Args:
        gpus: that one of its own shall say it has; None: those that there are.

    Raises:
        UserError: no cluster at ``address``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own imports
        import ray
    theirs = ray.is_initialized()
    if not theirs:
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is None:
            threads = str(threads_each(workers))
            with _on_loopback(), _environment(OMP_NUM_THREADS=threads, **SLOW_START):  # also of what Ray starts
                ray.init(
                    "local",
                    num_cpus=workers,
                    num_gpus=gpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE,
                    **quiet,
                )
        else:
            connect(address, quiet)
    try:
        n_cpus = int(ray.cluster_resources().get("CPU", 0))
        yield max(1, min(workers or n_cpus, n_cpus))
    finally:
        if not theirs:
            ray.shutdown()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started in this block, and every process of it, listens on 127.0.0.1 only.

    ``_node_ip_address`` does not do that: Ray takes the address of the network instead of a loopback one.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    with _environment(**{ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


def connect(address: str, quiet: Mapping[str, Any]) -> None:
    """Connect this process to the Ray cluster at ``host:port``, or at ``auto``, the one on this machine.

    Args:
        quiet: more arguments of ``ray.init``.

    Raises:
        UserError: there is none.
    """
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto":
        if not host or not port.isdigit():
            raise UserError(f"address: expected auto or <host>:<port> of a Ray cluster, got {address!r}")
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"address: expected a Ray cluster at {address}, got: {error}") from None
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"address: expected a Ray cluster at {address}, got: {reason}") from None


def threads_each(workers: int, n_cpus: int | None = None) -> int:
    """Threads of each of some processes that share the cores: OMP_NUM_THREADS where it is set and lower."""
    cores = len(os.sched_getaffinity(0)) if n_cpus is None else n_cpus
    asked = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores // max(1, workers))
    return min(share, int(asked)) if asked.isdigit() and int(asked) else share


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def at_home(folder: str, threads: int) -> None:
    """Make the process of a worker like ours: in our folder, so that relative paths are the same, on its threads."""
    import torch

    if os.path.isdir(folder):
        os.chdir(folder)
    torch.set_num_threads(threads)
