"""A network namespace in which a real node and its pods live, and ways from there to servers of this machine.

No test needs routes, rules or a DNS server: pods reach what listens inside, and listeners inside pass on to loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from pathlib import Path

from tests.support.servers import LOOPBACK, Server
from tests.support.wait import wait_for

SERVICE_ADDRESS = "10.96.0.1"
"""The Service `kubernetes`: first address of the control plane's service range."""
NODE_ADDRESS = "10.99.0.1"
_CLONE_NEWNET = 0x40000000
_CHUNK = 1 << 16


class Network:
    """The namespace lives as long as one process that holds it; `enter` is what a command inside begins with."""

    def __init__(self, folder: Path) -> None:
        self._listeners: list[socket.socket] = []
        self._holder = Server("network", ["unshare", "--net", "sleep", "infinity"], folder / "network.log")
        self._path = f"/proc/{self._holder.process.pid}/ns/net"
        try:
            wait_for(self._is_another, "a network namespace of its own", detail=self._holder.tail)
            self._run("ip", "link", "set", "lo", "up")
            for address in (SERVICE_ADDRESS, NODE_ADDRESS):
                self._run("ip", "address", "add", f"{address}/32", "dev", "lo")
        except BaseException:
            self.stop()
            raise

    @property
    def enter(self) -> list[str]:
        # Not `ip netns exec`: that mounts another /sys, without the cgroups.
        return ["nsenter", f"--net={self._path}", "--"]

    def forward(self, address: str, port: int, to: int) -> None:
        """Passes what comes to an address inside on to a port on this machine's loopback."""
        listener = self._listen(address, port)
        self._listeners.append(listener)
        threading.Thread(target=_accept, args=(listener, to), name=f"forward to {to}", daemon=True).start()

    def stop(self) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._holder.stop(patience=0.2)

    def _is_another(self) -> bool:
        self._holder.check()
        return os.readlink(self._path) != os.readlink("/proc/self/ns/net")

    def _run(self, *command: str) -> None:
        done = subprocess.run([*self.enter, *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")

    def _listen(self, address: str, port: int) -> socket.socket:
        """A socket stays in the namespace of the thread that made it, and setns(2) moves one thread only."""
        made: list[socket.socket | OSError] = []

        def inside() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(self._path, "rb") as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    made.append(OSError(ctypes.get_errno(), f"setns {self._path}"))
                    return
            try:
                made.append(socket.create_server((address, port), backlog=64))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        (found,) = made
        if isinstance(found, OSError):
            raise found
        return found


def _accept(listener: socket.socket, port: int) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # closed: the test is over
        try:
            server = socket.create_connection((LOOPBACK, port), timeout=10)
        except OSError:
            client.close()
            continue
        server.settimeout(None)
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)
