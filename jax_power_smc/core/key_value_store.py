"""A key-value store shared by the processes of one job, over TCP.

Process 0 serves it, and every process keeps a full copy. A value set by one process goes to process
0, which sends it to the others. So reading is free, and waiting for a value is local and may take
hours. (JAX's runtime has a store of its own, but it is not public.)

The messages are lines of JSON: first the client's token, which the server repeats, then
``[key, value]`` in both directions.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Collection, Sequence
from typing import IO

# Networks of clouds forget connections that are silent for some minutes.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20}
# Seconds for one attempt to connect, and between two of them.
_CONNECT_SECONDS, _RETRY_SECONDS = 5.0, 0.2


class KeyValueStore:
    """The copy that a process keeps; see ``StoreServer`` and ``StoreClient``."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()
        self._is_lost = False

    def set(self, key: str, value: str) -> None:
        """Sets a value: here at once, and soon in all other processes."""
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> str:
        """The value of a key that has been waited for."""
        with self._changed:
            return self._values[key]

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with the prefix."""
        with self._changed:
            return [key for key in self._values if key.startswith(prefix)]

    def wait(self, keys: Collection[str], seconds: float | None = None) -> bool:
        """Waits until all of these keys are set; False if that takes longer than ``seconds``.

        Raises:
          ConnectionError: if the server is gone, so that nothing will be set any more.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_lost or self._values.keys() >= set(keys), seconds
            )
            if self._values.keys() >= set(keys):
                return True
            if self._is_lost:
                raise ConnectionError("process 0 was lost, so all stop")
            return False

    def close(self) -> None:
        """Ends the connections."""


class StoreServer(KeyValueStore):
    """The store of process 0.

    Attributes:
      token: what clients must send; tells this job's server from any other.
      port: where it listens, at all addresses of the host; 0 in the arguments is any free one.

    Raises:
      OSError: if the port is taken.
    """

    def __init__(self, token: str, port: int = 0) -> None:
        super().__init__()
        self.token, self._clients = token, list[socket.socket]()
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, key: str, value: str) -> None:
        """Sets a value here and in all clients."""
        with self._changed:
            super().set(key, value)
            for client in self._clients:
                with contextlib.suppress(OSError):  # that one is gone
                    client.sendall(_line([key, value]))

    def close(self) -> None:
        """Closes the port and the connections."""
        _hang_up(self._listener)  # which also wakes the thread that accepts
        with self._changed:
            for client in self._clients:
                _hang_up(client)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # What is no message ends the connection of whoever sent it.
        ignored = contextlib.suppress(OSError, ValueError, TypeError)
        with client, ignored, client.makefile("rb") as lines:
            if json.loads(lines.readline()) != self.token:
                return
            _keep_alive(client)
            with self._changed:
                client.sendall(_line(self.token))
                for pair in self._values.items():
                    client.sendall(_line(list(pair)))
                self._clients.append(client)
            for line in lines:
                self.set(*json.loads(line))


class StoreClient(KeyValueStore):
    """The store of any other process.

    Tries names or addresses of process 0's host in turn, for so many seconds.

    Raises:
      TimeoutError: if no such server answers in that time.
    """

    def __init__(self, hosts: Sequence[str], port: int, token: str, seconds: float) -> None:
        super().__init__()
        deadline = time.monotonic() + seconds
        while True:
            for host in hosts:
                with contextlib.suppress(OSError, ValueError):
                    self._connect(host, port, token)
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing answers at {' or '.join(hosts)}, port {port}")
            time.sleep(_RETRY_SECONDS)

    def _connect(self, host: str, port: int, token: str) -> None:
        server = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        try:
            server.sendall(_line(token))
            lines = server.makefile("rb")
            if json.loads(lines.readline()) != token:
                raise ValueError("another server")
            server.settimeout(None)
            _keep_alive(server)
        except BaseException:
            server.close()
            raise
        self._server, self._sending = server, threading.Lock()
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def set(self, key: str, value: str) -> None:
        """Sets a value here, and asks the server to set it everywhere."""
        super().set(key, value)
        with self._sending, contextlib.suppress(OSError):  # whoever waits will hear of it
            self._server.sendall(_line([key, value]))

    def close(self) -> None:
        """Ends the connection."""
        _hang_up(self._server)

    def _listen(self, lines: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), lines:
            for line in lines:
                super().set(*json.loads(line))
        with self._changed:
            self._is_lost = True
            self._changed.notify_all()


def addresses() -> list[str]:
    """How other hosts may reach this one, the likeliest first."""
    found = []
    # The address from which this host reaches others; connecting a UDP socket sends nothing.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))
        found.append(probe.getsockname()[0])
    name = socket.gethostname()
    found.append(name)
    with contextlib.suppress(OSError):
        found += socket.gethostbyname_ex(name)[2]
    return list(dict.fromkeys([*found, "localhost"]))


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was quicker
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
