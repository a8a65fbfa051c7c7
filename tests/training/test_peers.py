"""The watch of processes over each other, in threads of this one, and the relay to JAX's service."""

import queue
import socket
import time

import pytest

from afloc_jax.training import peers
from afloc_jax.training.peers import Departure, Watch
from afloc_jax.training.relay import relay

BEAT, PATIENCE = 0.05, 0.6


@pytest.fixture
def three(monkeypatch):
    """The watches of three processes, what each is told (departures, and numbers of delayed processes), and how
    process 0 is reached."""
    monkeypatch.setattr(peers, "_DRAIN", 0.05)
    told = [queue.Queue() for _ in range(3)]
    watches = [Watch(process, told[process].put, told[process].put, BEAT, PATIENCE) for process in range(3)]
    port, token = watches[0].listen()
    for watch in watches[1:]:
        watch.connect("localhost", port, token)
    yield watches, told, port, token
    for watch in watches:
        watch.announce(0)


def test_an_announced_end_is_told_to_all_others_with_its_status(three):
    watches, told, _, _ = three
    watches[2].announce(3)
    assert told[0].get(timeout=5) == told[1].get(timeout=5) == Departure(2, 3)


def test_a_process_whose_connection_breaks_is_told_at_once(three):
    _, told, port, token = three
    with socket.create_connection(("localhost", port)) as dying:
        dying.sendall(b'{"process": 7, "token": "%s"}\n' % token.encode())
        time.sleep(5 * BEAT)
    began = time.monotonic()
    assert told[0].get(timeout=5) == told[1].get(timeout=5) == told[2].get(timeout=5) == Departure(7)
    assert time.monotonic() - began < PATIENCE


def test_a_process_that_sends_no_beat_counts_as_hanging(three):
    _, told, port, token = three
    with socket.create_connection(("localhost", port)) as hanging:
        hanging.sendall(b'{"process": 7, "token": "%s"}\n' % token.encode())
        assert told[1].get(timeout=5) == told[2].get(timeout=5) == Departure(7, silent=True)


@pytest.mark.parametrize("late", [0, 1])
def test_a_process_whose_main_thread_falls_behind_is_told_once_and_ends_nobody(three, late):
    watches, told, _, _ = three
    for mark in range(2):
        for watch in (*watches[:late], *watches[late + 1 :]):
            watch.passed()
        assert [each.get(timeout=5) for each in told] == [late] * 3, mark
        watches[late].passed()
        time.sleep(2 * PATIENCE)
        assert all(each.empty() for each in told)


def test_neither_strangers_nor_those_who_have_done_their_part_count(three):
    watches, told, port, _ = three
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": 7, "token": "x"}\n', b'{"process": 1, "status": 1}\n'):
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(words)
            assert not stranger.recv(1)
    watches[1].announce(0)
    time.sleep(2 * PATIENCE)  # beats come from process 2, which does not count as hanging
    assert all(each.empty() for each in told)


@pytest.mark.parametrize(
    ("departure", "status", "words"),
    [
        (Departure(1, 143), 143, "ended with exit status 143"),
        (Departure(1, 2), 2, "ended with exit status 2"),
        (Departure(1, 1), 1, "ended with exit status 1"),
        (Departure(1), 1, "died without a word"),
        (Departure(1, silent=True), 1, "has not been heard for 25 s"),
    ],
)
def test_the_others_follow_an_end_that_a_restart_would_not_mend(departure, status, words):
    assert departure.exit_status == status and words in str(departure)


def test_a_relay_waits_for_the_service_and_does_not_pass_its_end_on():
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    with socket.create_connection(("127.0.0.1", int(relay(f"localhost:{port}").rpartition(":")[2]))) as client:
        client.sendall(b"early")
        time.sleep(0.1)
        with socket.create_server(("localhost", port)) as service:
            connection, _ = service.accept()
            assert connection.recv(5) == b"early"
            connection.sendall(b"answer")
            assert client.recv(6) == b"answer"
            connection.close()
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
