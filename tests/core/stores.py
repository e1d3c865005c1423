"""Key-value stores of several processes, all of them in this one."""

import contextlib

from jax_power_smc.core.key_value_store import StoreClient, StoreServer


@contextlib.contextmanager
def stores(count):
    """One store for each process, connected over TCP."""
    server = StoreServer("token")
    clients = [StoreClient(["localhost"], server.port, "token", 10) for _ in range(count - 1)]
    try:
        yield [server, *clients]
    finally:
        for store in (*clients, server):
            store.close()
