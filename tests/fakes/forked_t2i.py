"""Starts `t2i` as a fork of a process that has imported it and torch, which takes seconds once.

Usage: `python -m tests.fakes.forked_t2i SOCKET` listens, and says "ready" on its standard output;
`python -I -S tests/fakes/forked_t2i.py SOCKET ARGUMENT ...` is then `t2i ARGUMENT ...`: its output,
input, environment and working directory are the caller's, signals are passed on, and the exit code
is the command's. The libraries of the Hub, of Google and of models are imported by each fork.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from types import FrameType

_HEAD = struct.Struct("!I")
_NUMBER = struct.Struct("!i")
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _call(address: str, arguments: list[str]) -> int:
    """Have a command run; its exit code, negative for a signal that ended it."""
    order = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    text = json.dumps(order).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [_HEAD.pack(len(text))], [0, 1, 2])
        connection.sendall(text)
        [pid] = _NUMBER.unpack(_read(connection, _NUMBER.size))

        def pass_on(number: int, _frame: FrameType | None) -> None:
            os.kill(pid, number)

        for number in _PASSED_ON:
            signal.signal(number, pass_on)
        [code] = _NUMBER.unpack(_read(connection, _NUMBER.size))
        return int(code)


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise EOFError("The process that forks has ended.")
        found += piece
    return found


def _serve(address: str) -> None:
    """Fork a process a connection, until standard input ends."""
    # Imported here: the caller's side starts in milliseconds.
    import gc

    import cryptography.x509
    import httpx2
    import PIL.PngImagePlugin
    import pydantic
    import torch

    import t2i_cli.cli.main

    del cryptography, httpx2, PIL, pydantic, t2i_cli, torch
    early = {"huggingface_hub", "diffusers", "transformers", "google.auth"} & sys.modules.keys()
    assert not early, f"{early} read the environment of the command"
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none is waited for here
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        os.write(1, b"ready\n")
        # Its input ends with the process that started it, however that ends.
        awaited = [listener.fileno(), sys.stdin.fileno()]
        while sys.stdin.fileno() not in select.select(awaited, [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _attend(connection)
            connection.close()


def _attend(connection: socket.socket) -> None:
    """Run one command in a fork, tell its exit code, and end it if its caller goes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, _HEAD.size, 3)
    order = json.loads(_read(connection, *_HEAD.unpack(head)))
    pid = os.fork()
    if pid == 0:
        connection.close()
        try:
            _become(order, streams)
        finally:
            os._exit(70)
    ended = os.pidfd_open(pid)
    connection.sendall(_NUMBER.pack(pid))
    for stream in streams:
        os.close(stream)
    ready, _, _ = select.select([connection.fileno(), ended], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended in ready:
        connection.sendall(_NUMBER.pack(code))
    os._exit(0)


def _become(order: dict[str, object], streams: list[int]) -> None:
    """Be the command; does not return."""
    from t2i_cli.cli import main
    from t2i_cli.terminal.console import console

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.setpgid(0, 0)
    os.chdir(str(order["folder"]))
    os.environ.clear()
    os.environ.update(order["environment"])  # type: ignore[call-overload]
    sys.argv = ["t2i", *order["arguments"]]  # type: ignore[misc]
    console._started = time.monotonic()  # noqa: SLF001 - as in a process of its own
    main.main()


if __name__ == "__main__":
    if __spec__ is None:
        code = _call(sys.argv[1], sys.argv[2:])
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        sys.exit(code)
    _serve(sys.argv[1])
