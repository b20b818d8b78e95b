"""Connects to a Ray cluster, or starts one on this machine; says plainly why that fails."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from instructgen.errors import ConfigError, first_line

_CONNECT_S = 10.0
# Ray's head node speaks gRPC, which is HTTP/2: the first frame of a server is of this type.
_SETTINGS, _FRAME_HEAD = b"\4", 9
# Objects that exceed it are written to disk. It is shared memory of this machine.
_OBJECT_STORE_BYTES = 512 * 2**20


@contextmanager
def connected(address: str, spill: Path | None = None) -> Iterator[Any]:
    """Yield the module ``ray``, connected to a cluster; disconnect at the end.

    If this process is connected already, that connection is used and kept.

    Args:
        address: HOST:PORT of the head node, or ``auto`` for the cluster that this machine belongs
            to. Otherwise ``auto`` starts one on this machine, until the end.
        spill: folder for objects that exceed the memory of a cluster that is started here; None
            for the system's folder for temporary files.

    Raises:
        ConfigError: Ray is not installed, the address is wrong, or the versions differ.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--ray needs the package ray.", "Run: pip install 'instructgen[ray]'"
        ) from error
    if ray.is_initialized():
        connected_to = ray.get_runtime_context().gcs_address
        if address not in ("auto", connected_to):
            raise ConfigError(
                f"--ray={address}: this process is already connected to {connected_to}.",
                "Call ray.shutdown() first.",
            )
        yield ray
        return
    # What Ray reads when it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # If the process is killed, what is left is in the folder that the same command uses again.
    with TemporaryDirectory(prefix=".ray-", dir=spill, ignore_cleanup_errors=True) as folder:
        try:
            _connect(ray, address, folder)
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, folder: str) -> None:
    if address == "auto":
        address = _running() or "local"
    else:
        _check_address(address)
    try:
        _start(ray, address, folder)
    except ConnectionError as error:
        raise _unreachable(address, first_line(error)) from error
    except (RuntimeError, ValueError) as error:
        # Such as other versions of Python or Ray, which the message names.
        text = " ".join(str(error).split())
        raise ConfigError(
            f"--ray={address}: {text[:300]}", "Install the version of the cluster here."
        ) from error


def _start(ray: Any, address: str, folder: str) -> None:
    if address == "local":
        new = {
            "include_dashboard": False,
            "num_cpus": len(os.sched_getaffinity(0)),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "object_spilling_directory": folder,
        }
    else:
        new = {}
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **new)


def _running() -> str | None:
    """Return the address of the cluster that this machine belongs to, or None.

    A cluster that was killed leaves its address in a file. Ray itself would wait for minutes.

    Raises:
        ConfigError: the cluster that the variable RAY_ADDRESS names does not answer.
    """
    from ray._private.services import get_ray_address_from_environment

    try:
        address = str(get_ray_address_from_environment("auto", None))
    except ConnectionError:
        return None
    try:
        _check_address(address)
    except ConfigError:
        if os.environ.get("RAY_ADDRESS"):
            raise
        return None
    return address


def _check_address(address: str) -> None:
    """Raise ConfigError unless a head node listens at the address: Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ConfigError(
            f"--ray={address} is neither auto nor HOST:PORT.",
            "Pass the address of the head node, such as --ray=10.0.0.1:6379, from a machine of "
            "the cluster.",
        )
    try:
        # An IPv6 address is in brackets.
        place = host.strip("[]"), int(port)
        with socket.create_connection(place, timeout=_CONNECT_S) as connection:
            reply = _first_frame(connection)
    except (OSError, OverflowError, ValueError) as error:
        raise _unreachable(address, first_line(error)) from error
    # With TLS, the head node does not answer before a handshake.
    if reply[3:4] != _SETTINGS and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise _unreachable(address, "another program listens there")


def _first_frame(connection: socket.socket) -> bytes:
    """Return the beginning of what a server answers to the beginning of HTTP/2 (RFC 9113, 3.4)."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0" * 5)
    reply = b""
    with suppress(TimeoutError, ConnectionError):
        while len(reply) < _FRAME_HEAD and (part := connection.recv(_FRAME_HEAD - len(reply))):
            reply += part
    return reply


def _unreachable(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"--ray={address}: no cluster answers there ({why}).",
        "Check the address (ray status prints it), or pass --ray=auto.",
    )


def ray_line(error: BaseException) -> str:
    """Return the first line of Ray's error, of its cause if that is what a task has raised."""
    cause = getattr(error, "cause", None)
    return first_line(cause if isinstance(cause, BaseException) else error)
