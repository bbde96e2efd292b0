"""What an engine behind HTTP takes for a server that is gone, and what not."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.engines import test_llamacpp_wire, test_vllm
from tests.engines.test_vllm import HEALTHY, STREAM, serving
from tests.engines.token_server import BREAK, SILENCE, Reply, TokenServer, collect, request, until
from tests.engines.upstream.server import Peer

from moonbase.engines.token_server import TokenServerEngine
from moonbase.errors import EngineOverloaded, EngineUnavailable

pytestmark = pytest.mark.anyio

HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\nContent-Length: 9999999\r\n\r\n".encode()
TOKEN = b'data: {"choices": [{"index": 0, "token_ids": [7]}]}\n\n'
FAILING = 1  # token at most: such a request fails, and then the engine looks at the server
LONGEST_LOOK = 5.5  # seconds
ROOM = 1024


async def endless(peer: Peer, body: Any) -> Reply | None:
    """Tokens without an end."""
    if body["max_tokens"] == FAILING:
        return 500, "text/plain", b""
    await peer.send(HEAD)
    while True:
        await peer.send(TOKEN)
        await asyncio.sleep(0.05)


async def single(peer: Peer, body: Any) -> Reply | None:
    """One token, and then nothing."""
    if body["max_tokens"] == FAILING:
        return 500, "text/plain", b""
    await peer.send(HEAD + TOKEN)
    await peer.gone()
    return None


async def trickle(peer: Peer, body: Any) -> Reply | None:
    """A refusal without an end."""
    if body.get("max_tokens", body.get("n_predict")) == FAILING:
        peer.reset()
        return None
    await peer.send(HEAD.replace(b"200 OK", b"503 X"))
    while True:
        await peer.send(b"x")
        await asyncio.sleep(0.05)


async def fall_silent(server: TokenServer, engine: TokenServerEngine) -> None:
    """From now on no look is answered, and one begins."""
    server.pages["/health"] = SILENCE
    looks = server.looks
    await collect(engine.generate(request(max_tokens=FAILING)))
    await until(lambda: server.looks > looks)


async def test_a_server_too_busy_for_a_look_is_not_gone_while_tokens_flow() -> None:
    async with serving(endless) as (server, engine):
        with engine.generate(request()) as generation:
            await fall_silent(server, engine)
            loop = asyncio.get_running_loop()
            later = loop.time() + LONGEST_LOOK
            while loop.time() < later:
                await generation.read()
                assert engine.ready


@pytest.mark.parametrize("serving", [test_vllm.serving, test_llamacpp_wire.serving], ids=["vllm", "llamacpp"])
async def test_a_refusal_is_no_sign_that_a_server_works(serving: Callable[..., Any]) -> None:
    async with serving(trickle) as (server, engine):
        with engine.generate(request()):
            await until(lambda: len(server.bodies) == 1)
            await fall_silent(server, engine)
            await asyncio.sleep(LONGEST_LOOK)
            assert not engine.ready


async def test_a_look_that_breaks_off_finds_no_server_however_busy_it_was() -> None:
    async with serving(endless) as (server, engine):
        with engine.generate(request()) as generation:
            await generation.read()
            server.pages["/health"] = BREAK
            looks = server.looks
            await collect(engine.generate(request(max_tokens=FAILING)))
            await until(lambda: server.looks > looks)
            await until(lambda: not engine.ready, seconds=2)


async def test_a_server_that_answers_nothing_is_gone_and_the_log_says_what_it_did_not_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(single) as (server, engine):
        with engine.generate(request()) as generation:
            await generation.read()
            await fall_silent(server, engine)
            await until(lambda: not engine.ready)
            with pytest.raises(EngineUnavailable):
                engine.generate(request())
            server.pages["/health"] = HEALTHY
            await until(lambda: engine.ready)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("server_watch")]
    assert told == [f"{server.url} cannot be used: /health is not answered within 5 s"]


async def test_a_crowd_is_refused_and_does_not_hide_the_server() -> None:
    async with serving(single) as (server, engine), contextlib.AsyncExitStack() as crowd:
        for _ in range(ROOM):
            generation = crowd.enter_context(engine.generate(request()))
            await generation.read()
        looks = server.looks
        with pytest.raises(EngineOverloaded):
            engine.generate(request())
        await until(lambda: server.looks > looks, seconds=2 * LONGEST_LOOK)
        await asyncio.sleep(0.1)
        assert engine.ready
        assert engine.running == ROOM
