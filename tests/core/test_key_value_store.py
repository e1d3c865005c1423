"""The store that processes share: what one sets all see, and a lost server ends the wait."""

import socket
import threading
import time

import pytest

from jax_power_smc.core.key_value_store import StoreClient, StoreServer, addresses
from tests.core.stores import stores


def test_what_one_sets_all_see():
    with stores(4) as all_stores:
        for index, store in enumerate(all_stores):
            store.set(f"value/{index}", f"line {index}\n and ü")
        keys = [f"value/{index}" for index in range(4)]
        for store in all_stores:
            assert store.wait(keys, 10)
            assert [store.get(key) for key in keys] == [f"line {i}\n and ü" for i in range(4)]
            assert sorted(store.keys("value/")) == keys and store.keys("other/") == []


def test_a_late_client_is_told_what_was_set_before():
    with stores(2) as (server, first):
        first.set("early", "yes")
        assert server.wait(["early"], 10)
        late = StoreClient(["localhost"], server.port, "token", 10)
        assert late.wait(["early"], 10) and late.get("early") == "yes"
        late.close()


def test_a_wait_ends_when_the_value_comes_and_not_before():
    with stores(2) as (server, client):
        assert not client.wait(["a", "b"], 0.05)
        server.set("a", "1")
        assert not client.wait(["a", "b"], 0.05)
        timer = threading.Timer(0.1, server.set, ("b", "2"))
        timer.start()
        assert client.wait(["a", "b"])
        timer.join()


def test_a_lost_server_ends_every_wait():
    with stores(2) as (server, client):
        client.set("own", "yes")
        assert server.wait(["own"], 10)
        server.close()
        with pytest.raises(ConnectionError, match="process 0 was lost"):
            client.wait(["never"])
        assert client.wait(["own"])  # what is known stays known


def test_a_lost_client_does_not_disturb_the_others():
    with stores(3) as (server, lost, other):
        lost.close()
        for number in range(20):
            server.set(f"n/{number}", "x" * 1000)
        assert other.wait([f"n/{number}" for number in range(20)], 10)


def test_a_client_tries_every_address_until_its_server_answers():
    with stores(1) as (server,):
        client = StoreClient(["no.such.host.invalid", "localhost"], server.port, "token", 10)
        server.set("a", "1")
        assert client.wait(["a"], 10)
        client.close()


def test_a_client_waits_for_a_server_that_starts_later():
    with socket.create_server(("", 0)) as chosen:
        port = chosen.getsockname()[1]
    made = []
    timer = threading.Timer(0.5, lambda: made.append(StoreServer("token", port)))
    timer.start()
    client = StoreClient(["localhost"], port, "token", 10)
    timer.join()
    made[0].set("a", "1")
    assert client.wait(["a"], 10)
    client.close()
    made[0].close()


def test_the_server_of_another_job_is_not_taken_for_ones_own():
    with stores(1) as (server,):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"nothing answers at localhost, port {server.port}"):
            StoreClient(["localhost"], server.port, "another", 0.3)
        assert time.monotonic() - began < 5


def test_garbage_does_not_stop_the_server():
    with stores(2) as (server, client):
        for line in (b"not json\n", b'"token"\nnot json\n', b'"token"\n[1]\n', b""):
            with socket.create_connection(("localhost", server.port)) as stranger:
                stranger.sendall(line)
        server.set("a", "1")
        assert client.wait(["a"], 10)


def test_a_host_has_an_address():
    assert addresses()[-1] == "localhost"
