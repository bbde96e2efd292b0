"""What tests of the engines behind HTTP share: a server that answers as told, requests, and answers read to the end."""

import asyncio
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tests.engines.upstream.server import Peer, serving

from moonbase.chat.constraint import Constraint
from moonbase.chat.request import Sampling
from moonbase.engines.base import Engine, GenerateRequest, Generation
from moonbase.errors import ApiError

PROMPT = array("I", [163587, 2482, 163601, 19180, 163586, 163588, 69702, 163601])
STOP_IDS = (163586, 163585)

Reply = tuple[int, str, bytes]
SILENCE: Reply = (0, "", b"")
"""A page that is never answered."""
BREAK: Reply = (0, "", b"reset")
"""A page for which the connection is reset, half a second after it was asked for."""
Route = Callable[[Peer, Any], Awaitable[Reply | None]]


@dataclass
class TokenServer:
    """Answers GET with `pages` and POST with `answer`; keeps the bodies that it was sent. `looks` counts GETs."""

    pages: dict[str, Reply]
    answer: Reply | Route
    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    looks: int = 0

    async def script(self, peer: Peer) -> None:
        while True:
            asked = await peer.read_request()
            method, path, _ = asked.line.split()
            self.keys.add(asked.headers.get("authorization"))
            if method == "GET":
                self.looks += 1
                reply: Reply | None = self.pages.get(path, (404, "application/json", b"{}"))
            else:
                self.paths.append(path)
                self.bodies.append(msgspec.json.decode(asked.body))
                reply = self.answer if isinstance(self.answer, tuple) else await self.answer(peer, self.bodies[-1])
            if reply is None:
                return
            if reply is SILENCE:
                await peer.gone()
                return
            if reply is BREAK:
                await asyncio.sleep(0.5)
                peer.reset()
                return
            status, kind, body = reply
            head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            await peer.send(head.encode() + body)


@asynccontextmanager
async def token_server(pages: dict[str, Reply], answer: Reply | Route) -> AsyncIterator[TokenServer]:
    served = TokenServer(pages, answer)
    async with serving(served.script) as server:
        served.url = server.url
        yield served


def sample(file: Path) -> Reply:
    """A recorded answer: `.txt` a stream, `.json` a document whose error has the status."""
    body = file.read_bytes()
    if file.suffix == ".txt":
        return 200, "text/event-stream; charset=utf-8", body
    error = msgspec.json.decode(body).get("error")
    return error["code"] if error else 200, "application/json", body


def request(
    *,
    n: int = 1,
    max_tokens: int = 16,
    constraint: Constraint | None = None,
    scope: str = "org-a",
    prompt: array = PROMPT,  # type: ignore[type-arg]
    **sampling: float,
) -> GenerateRequest:
    defaults: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    return GenerateRequest(
        request_id="test",
        prompt_ids=prompt,
        sampling=Sampling(n=n, **defaults | sampling),
        max_tokens=max_tokens,
        stop_ids=STOP_IDS,
        constraint=constraint,
        cache_scope=scope,
    )


@dataclass
class Answer:
    """What a generation brought, by choice."""

    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    finish: dict[int, str] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    error: ApiError | None = None


async def collect(generation: Generation) -> Answer:
    """Read a generation to its end; an error that ends it is kept in the answer."""
    answer = Answer()
    with generation:
        try:
            while deltas := await generation.read():
                for delta in deltas:
                    answer.tokens[delta.choice] += delta.token_ids
                    answer.cached[delta.choice] += delta.cached_tokens
                    if delta.finish is not None:
                        answer.finish[delta.choice] = delta.finish
        except ApiError as error:
            answer.error = error
    return answer


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Engine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        await asyncio.sleep(0.05)  # a look that was under way may still reach the server


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - engines tell nobody
            await asyncio.sleep(0.01)
