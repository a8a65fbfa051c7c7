"""What the page holds of strangers: bytes, connections and time, with clients that are slow on purpose."""

import asyncio
import contextlib
import dataclasses
import json
import select
import socket
import sys
import threading
import time

import anyio
import pytest
import uvicorn

from afloc_jax.errors import UserError
from afloc_jax.serve.app import make_app
from afloc_jax.serve.connections import limited
from afloc_jax.serve.limits import LIMITS, Pace, Room, Share
from afloc_jax.serve.questions import About, AboutModel, Answer, Question
from afloc_jax.serve.workers import Worker

ABOUT = About((AboutModel("tiny"),))
QUICK = dataclasses.replace(LIMITS, patience=0.4, pace=1 << 20)
HEAD = b"POST /picture HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"


async def echo(question, parts, wanted):
    return Answer(200, json.dumps({"bytes": sum(map(len, parts))}).encode()) if await wanted() else None


@contextlib.contextmanager
def server(ask=echo, limits=QUICK, about=ABOUT, **options):
    """A server in a thread. Gives a function that connects to it, and has its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = make_app(ask, about, limits=limits, **options)
    config = uvicorn.Config(
        app, http=limited(limits), log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=0
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    with contextlib.ExitStack() as opened:

        def connect(sent=b""):
            client = opened.enter_context(socket.create_connection(listener.getsockname(), timeout=10))
            client.sendall(sent)
            return client

        connect.port = listener.getsockname()[1]
        try:
            yield connect
        finally:
            running.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


def received(client):
    """Everything that comes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def answer_of(client):
    """The next answer, which ends with JSON."""
    parts = b""
    while not parts.endswith(b"}"):
        parts += client.recv(1 << 16) or b"}"
    return parts


def get(connect):
    """Seconds until the page is there: the best of three, because other work on this machine takes time too."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        answer = received(connect(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"</html>\n")
        times.append(time.monotonic() - began)
    return min(times)


def test_clients_that_send_slowly_are_let_go_and_the_page_answers_meanwhile():
    with server() as connect:
        heads = [connect(b"GET / HT") for _ in range(20)]
        files = [connect(HEAD % 1000 + b"x") for _ in range(20)]
        assert get(connect) < 1
        for client in heads:
            assert received(client) == b""
        for client in files:
            answer = received(client)
            assert answer.startswith(b"HTTP/1.1 408") and b"too slowly" in answer


def test_connections_are_bounded_and_a_new_one_takes_the_place_of_one_that_asks_nothing():
    limits = dataclasses.replace(QUICK, connections=10, questions=5, patience=5)
    with server(limits=limits) as connect:
        idle = [connect() for _ in range(10)]
        assert get(connect) < 1
        closed = select.select(idle, [], [], 2)[0]
        assert 1 <= len(closed) <= 3 and received(closed[0]) == b""
        waiting = [connect(HEAD % 1000 + b"x") for _ in range(5)]
        refused = answer_of(connect(HEAD % 1000 + b"x"))
        assert refused.startswith(b"HTTP/1.1 503") and b"ask again later" in refused
        assert get(connect) < 1
        for client in waiting:
            client.sendall(b"x" * 999)
            assert b'{"bytes": 1000}' in answer_of(client)


def test_uploads_of_all_connections_together_are_bounded_and_all_are_answered(monkeypatch):
    held, grow, full = [], Share.grow, threading.Event()

    async def grow_watched(share, count):
        await grow(share, count)
        held.append(share._room.held)
        if share._room.held > limits.uploads:
            full.set()

    monkeypatch.setattr(Share, "grow", grow_watched)
    limits, size = dataclasses.replace(LIMITS, body=1 << 20, uploads=1 << 21), 900_000
    with server(limits=limits) as connect:
        clients = [connect(HEAD % size) for _ in range(12)]

        def send(client):
            client.sendall(b"x" * (size - 1))
            full.wait(10)  # nobody's upload ends before the room is full, however quick the server is
            client.sendall(b"x")
            answers.append(answer_of(client))

        answers: list[bytes] = []
        threads = [threading.Thread(target=send, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(answers) == 12 and all(b'{"bytes": 900000}' in answer for answer in answers)
    assert limits.uploads < max(held) <= limits.uploads + limits.body


def test_a_client_that_takes_its_answer_slowly_is_let_go():
    async def ask(question, parts, wanted):
        return Answer(200, b"x" * (32 << 20)) if await wanted() else None

    with server(ask) as connect:
        client = connect(HEAD % 0)
        time.sleep(1.2)
        assert get(connect) < 1
        assert len(received(client)) < 32 << 20


def test_who_waits_when_the_page_is_ended_gets_json():
    async def ask(question, parts, wanted):
        await anyio.sleep(60)

    with contextlib.ExitStack() as stack:
        with server(ask) as connect:
            client = stack.enter_context(connect(HEAD % 0).dup())
            time.sleep(0.5)
        head, _, body = received(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503") and set(json.loads(body)) == {"error"}


@pytest.mark.parametrize("sent", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000])
def test_what_is_no_http_gets_json(sent):
    with server() as connect:
        head, _, body = received(connect(sent)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400") and b"application/json" in head
        assert set(json.loads(body.split(b"\r\n")[1] if b"chunked" in head else body)) == {"error"}


def test_a_full_room_lets_the_fullest_go_on_for_a_limited_time():
    async def run():
        room = Room(100, seconds=0.2)
        with room.share(40) as small, room.share(60) as large:
            async with anyio.create_task_group() as tasks:
                order = []

                async def grow(share):
                    await share.grow(10)
                    order.append(share)

                tasks.start_soon(grow, large)
                await anyio.sleep(0.01)
                tasks.start_soon(grow, small)
                await anyio.sleep(0.01)
                assert order == [large] and room.held == 110
                await large.grow(10)
                await anyio.sleep(0.25)
                with pytest.raises(TimeoutError):
                    await large.grow(10)
                large.release()
                await anyio.sleep(0.01)
                assert order == [large, small] and room.held == 50
        assert room.held == 0

    anyio.run(run)


def test_patience_is_refilled_by_bytes_and_never_saved_up():
    async def run():
        pace = Pace(dataclasses.replace(LIMITS, patience=0.1, pace=1000))
        pace.moved(1_000_000)
        for _ in range(4):
            with pace.waiting():
                await anyio.sleep(0.06)
            pace.moved(60)
        with pytest.raises(TimeoutError), pace.waiting():
            await anyio.sleep(0.2)

    anyio.run(run)


FAKE = """
import json, os, sys, time
from afloc_jax.serve.questions import Answer, read_question, write_answer
about = {"models": [{"name": "fake", "trained_on": [], "version": os.environ.get("FAKE", "")}]}
write_answer(sys.stdout.buffer, Answer(0, json.dumps(about).encode()))
while asked := read_question(sys.stdin.buffer):
    question, data = asked
    if question.texts == ("end",):
        os._exit(7)
    time.sleep(60 * (question.texts == ("hang",)))
    write_answer(sys.stdout.buffer, Answer(200, b"%d bytes" % len(data)))
"""


@pytest.fixture
def worker(tmp_path):
    class Fake(Worker):
        command = (sys.executable, "-P", "-c", FAKE)

    with Fake([(tmp_path, "fake")], dataclasses.replace(LIMITS, seconds=1.5)) as started:
        yield started


def test_a_model_that_is_not_loaded_in_time_ends_the_start_and_later_the_answer(tmp_path, worker, monkeypatch):
    class Slow(Worker):
        command = (sys.executable, "-c", "import time; time.sleep(60)")

    limits = dataclasses.replace(LIMITS, loading=0.3)
    slow = Slow([(tmp_path, "fake")], limits)
    with pytest.raises(UserError, match=r"not loaded within 0\.3 s"), slow:
        pass
    assert slow.stop() == "not started", "its process is gone"
    monkeypatch.setattr(worker, "command", Slow.command)
    monkeypatch.setattr(worker, "limits", limits)
    worker.stop()
    late = ask(worker)
    assert late.status == 500 and b"not loaded within 0.3 s" in late.content


async def yes():
    return True


def ask(worker, *texts, wanted=yes, parts=(b"abc", b"de")):
    return asyncio.run(worker.ask(Question("localize", texts), parts, wanted))


def test_a_process_that_hangs_or_ends_is_replaced(worker, monkeypatch):
    assert worker.about.models[0].name == "fake"
    assert ask(worker) == Answer(200, b"5 bytes")
    hung = ask(worker, "hang")
    assert hung.status == 503 and b"no answer within 1.5 s" in hung.content
    assert ask(worker, parts=[bytes(3 << 20)]) == Answer(200, b"3145728 bytes")
    ended = ask(worker, "end")
    assert ended.status == 500 and b"status 7" in ended.content
    assert ask(worker) == Answer(200, b"5 bytes")
    monkeypatch.setenv("FAKE", "another model")
    worker.stop()
    changed = ask(worker)
    assert changed.status == 500 and b"has changed" in changed.content


def test_a_question_that_nobody_waits_for_is_not_asked(worker):
    async def no():
        return False

    assert ask(worker, "hang", wanted=no) is None


def test_one_question_is_asked_at_a_time(worker):
    async def run():
        done = []

        async def one(size):
            done.append((await worker.ask(Question("picture"), [bytes(size)], yes)).content)

        async with anyio.create_task_group() as tasks:
            for size in range(20):
                tasks.start_soon(one, size)
        return done

    assert anyio.run(run) == [b"%d bytes" % size for size in range(20)]
