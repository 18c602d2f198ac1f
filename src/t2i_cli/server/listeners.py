"""Listening sockets: TCP addresses, and Unix sockets that only this user can connect to."""

import ipaddress
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t2i_cli.errors import InputError, os_reason
from t2i_cli.files.state_files import open_regular
from t2i_cli.server.connections import listen_backlog

_LOCK = b"t2i serve\n"
"""Contents of the lock file beside a Unix socket; those of earlier versions are empty."""


def is_loopback_host(host: str) -> bool:
    """Whether the name or address is loopback only. Raises InputError."""
    return all(
        ipaddress.ip_address(address.partition("%")[0]).is_loopback
        for _, address in _addresses(host)
    )


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one, and "::" IPv4 as well. Raises InputError."""
    family, address = _addresses(host)[0]
    # Python binds to IPv6 alone, also where the system would take both.
    both = family == socket.AF_INET6 and address == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            (address, port), family=family, backlog=listen_backlog(), dualstack_ipv6=both
        )
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host} port {port}: {os_reason(error)}.",
            hint="--port takes another port; --port 0 finds a free one.",
        ) from error
    # Inherited by connections; asyncio sets it only on sockets made with the protocol's number.
    # Without it the end of a response waits for the client's ACK, 40 ms on Linux.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _addresses(host: str) -> list[tuple[int, str]]:
    """Address families and addresses of a host name. Raises InputError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(
            f"There is no address {host}: {os_reason(error)}.", field="host"
        ) from error
    return [(family, str(address[0])) for family, _, _, _, address in found]


@contextmanager
def listen_unix(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket that only this user can connect to; removed at the end.

    Its folder must be private to the user; it is created if it is missing. Raises InputError if
    another server uses the path, or if it exists and is not the socket of a killed t2i server.
    """
    if sys.platform == "win32":
        raise InputError("There are no Unix sockets on this system.", field="uds")
    from filelock import lock_descriptor

    _check_folder(path.parent)
    lock_path = Path(f"{path}.lock")
    # t2i creates the lock file before its first socket there, and keeps it.
    lock_existed = os.path.lexists(lock_path)
    if os.path.lexists(path) and not lock_existed:
        raise _path_in_use(path)
    try:
        lock = open_regular(lock_path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise InputError(f"Cannot use '{lock_path}': {os_reason(error)}.", field="uds") from error
    try:
        if not lock_descriptor(lock, blocking=False):
            raise InputError(f"Another server uses '{path}'.", field="uds")
        if not lock_existed:
            os.pwrite(lock, _LOCK, 0)
        if os.path.lexists(path):
            _remove_stale_socket(path, os.pread(lock, 100, 0))
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(path))
            except OSError as error:  # mostly a path of more than 107 bytes
                raise InputError(
                    f"Cannot listen on '{path}': {os_reason(error)}.", field="uds"
                ) from error
            socket_stat = path.lstat()
            try:
                path.chmod(0o600)
                listener.listen(listen_backlog())
                yield listener
            finally:
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.lstat(), socket_stat):
                        path.unlink()
    finally:
        os.close(lock)


def _remove_stale_socket(path: Path, content: bytes) -> None:
    """Remove the socket of a killed server. Raises InputError for anything else.

    `content` is that of the lock file beside it.
    """
    found = path.lstat()
    is_own_socket = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid()
    # Other programs have empty lock files as well, but their sockets are not mode 0600.
    if not is_own_socket or not (
        content == _LOCK or (content == b"" and stat.S_IMODE(found.st_mode) == 0o600)
    ):
        raise _path_in_use(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:  # no process listens
            path.unlink()
            return
        except OSError as error:
            raise InputError(
                f"Cannot listen on '{path}': {os_reason(error)}.", field="uds"
            ) from error
    raise InputError(f"Another program listens on '{path}'.", field="uds")


def _path_in_use(path: Path) -> InputError:
    return InputError(
        f"'{path}' is there, and no socket that t2i left.",
        hint="Move it away, or name another path.",
        field="uds",
    )


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise InputError(f"Cannot use '{folder}': {os_reason(error)}.", field="uds") from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise InputError(
            f"Others can reach '{folder}', and so could a socket in it.",
            hint=f"chmod 700 '{folder}', or name a folder of your own.",
        )
