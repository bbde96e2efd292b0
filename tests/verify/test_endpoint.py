"""Requests are tried again where that may help."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from moonbase.engines.upstream.client import UpstreamClient
from moonbase.verify.answers import Answer
from moonbase.verify.endpoint import Access, Endpoint

pytestmark = pytest.mark.anyio


def reply(status: str, body: bytes, *, length: int | None = None, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body) if length is None else length}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
GOOD = reply("200 OK", json.dumps({"choices": [CHOICE]}).encode())
BUSY = reply("429 Too Many Requests", b'{"error":{"message":"busy","type":"engine_overloaded_error"}}')
WRONG = reply("400 Bad Request", b'{"error":{"message":"no","type":"invalid_request_error"}}')
CUT = reply("200 OK", b'data: {"choices":[]}\n\ndata: {"cho', length=500, kind="text/event-stream")
FRAME = reply("200 OK", b'data: {"error":{"message":"engine lost"}}\n\n', kind="text/event-stream")


@asynccontextmanager
async def answering(*replies: bytes) -> AsyncIterator[str]:
    """A server that gives these replies, one after the other."""
    waiting = iter(replies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        writer.write(next(waiting))
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        assert not list(waiting), "not all replies were asked for"


async def ask(*replies: bytes, retries: int = 1) -> Answer:
    async with answering(*replies) as url, UpstreamClient(url) as client:
        endpoint = Endpoint(client, Access(model="m", retries=retries))
        answer = await endpoint.chat({"messages": []})
        assert endpoint.requests == len(replies)
        return answer


async def test_what_may_pass_is_asked_for_again() -> None:
    after_429, after_broken_stream = await asyncio.gather(ask(BUSY, GOOD), ask(CUT, GOOD))  # each waits two seconds
    for answer in (after_429, after_broken_stream):
        assert answer.whole
        assert answer.first.content == "Hi"


async def test_tries_are_bounded_and_the_last_answer_counts() -> None:
    answer = await ask(BUSY, retries=0)
    assert (answer.status, answer.failure) == (429, "status 429: busy")


@pytest.mark.parametrize(
    ("given", "failure"),
    [(WRONG, "status 400: no"), (FRAME, "the stream ended in an error: engine lost")],
    ids=["a refusal", "an error in a stream"],
)
async def test_what_the_server_means_is_not_asked_for_again(given: bytes, failure: str) -> None:
    answer = await ask(given)
    assert answer.failure == failure
    assert not answer.whole


async def test_extra_fields_go_with_every_request() -> None:
    async with answering(GOOD) as url, UpstreamClient(url) as client:
        endpoint = Endpoint(client, Access(model="m", extra={"thinking": {"type": "disabled"}}))
        answer = await endpoint.chat({"messages": []})
    assert answer.request == {"model": "m", "messages": [], "thinking": {"type": "disabled"}}
