"""An engine that costs next to nothing: every stream gets its next token at the same tick.

`python -m benchmarks.relay.upstream [--tick 0.01]` prints its port. It answers as vLLM does: chats as events and whole
(`/v1/chat/completions`), and completions of token ids (`/v1/completions` with `return_token_ids`). A request gets as
many tokens as its `max_tokens`, the first at once. The text of a chat's token is the time at which it was sent, in
nanoseconds of the monotonic clock, which all processes of a machine share.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools
import msgspec
import uvloop
from msgspec import Struct

MODEL = "served"
_TOKEN_ID = 1_000
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"
_MODELS = (
    b'{"object":"list","data":[{"id":"served","object":"model","created":1795398550,"owned_by":"vllm",'
    b'"root":"served","parent":null,"max_model_len":131072}]}'
)
_CHAT = (
    b'data: {"id":"chatcmpl-a1b2c3d4e5f60718","object":"chat.completion.chunk","created":1795398550,"model":"served",'
    b'"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
)
_CHAT_LAST = (
    b'data: {"id":"chatcmpl-a1b2c3d4e5f60718","object":"chat.completion.chunk","created":1795398550,"model":"served",'
    b'"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-a1b2c3d4e5f60718","object":"chat.completion.chunk","created":1795398550,"model":"served",'
    b'"choices":[],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}}\n\ndata: [DONE]\n\n'
)
_IDS = (
    b'data: {"id":"cmpl-a1b2c3d4e5f60718","object":"text_completion","created":1795398550,"model":"served",'
    b'"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":%b,"stop_reason":null,'
    b'"prompt_token_ids":null,"token_ids":[%d]}]}\n\n'
)
_IDS_USAGE = (
    b'data: {"id":"cmpl-a1b2c3d4e5f60718","object":"text_completion","created":1795398550,"model":"served",'
    b'"choices":[],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":0}}}\n\ndata: [DONE]\n\n'
)
_WHOLE = (
    b'{"id":"chatcmpl-a1b2c3d4e5f60718","object":"chat.completion","created":1795398550,"model":"served","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}}'
)
_WORD = b" word"  # a token of a whole answer, five bytes as text has


class _Asked(Struct):
    """A router writes the newer name of the limit into what it passes on."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    prompt: list[int] = []

    @property
    def limit(self) -> int:
        return self.max_tokens or self.max_completion_tokens or 16


_decode = msgspec.json.Decoder(_Asked).decode


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _json(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Upstream:
    """All streams that are open, and how many tokens each has yet to get."""

    def __init__(self) -> None:
        self.streams: dict[_Connection, int] = {}

    def tick(self) -> None:
        """Send every stream its next token."""
        now = b"%d" % time.monotonic_ns()
        chat, ids = _chunk(_CHAT % now), _chunk(_IDS % (b"null", _TOKEN_ID))
        for connection, left in list(self.streams.items()):
            if left > 1:
                connection.transport.write(ids if connection.ids else chat)
                self.streams[connection] = left - 1
            else:
                connection.last(now)
                del self.streams[connection]


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._path = b""
        self._tokens = self._prompt = 0
        self.ids = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.streams.pop(self, None)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # routers try HTTP/2 first
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        answer: Callable[[_Asked], None] | None = {
            b"/v1/chat/completions": self._chat,
            b"/v1/completions": self._completion,
        }.get(self._path)
        if answer is not None:
            answer(_decode(body))
        else:
            self.transport.write(_json(_MODELS if self._path == b"/v1/models" else b"{}"))

    def _chat(self, asked: _Asked) -> None:
        self._tokens, self._prompt, self.ids = asked.limit, 100, False
        if not asked.stream:
            usage = (self._prompt, self._prompt + self._tokens, self._tokens)
            self.transport.write(_json(_WHOLE % (_WORD * self._tokens, *usage)))
        else:
            self._begin(_CHAT % (b"%d" % time.monotonic_ns()))

    def _completion(self, asked: _Asked) -> None:
        self._tokens, self._prompt, self.ids = asked.limit, len(asked.prompt), True
        self._begin(_IDS % (b"null", _TOKEN_ID))

    def _begin(self, first: bytes) -> None:
        self.transport.write(_HEAD + _chunk(first))
        self._upstream.streams[self] = self._tokens - 1

    def last(self, now: bytes) -> None:
        usage = (self._prompt, self._prompt + self._tokens, self._tokens)
        data = _IDS % (b'"length"', _TOKEN_ID) + _IDS_USAGE % usage if self.ids else _CHAT_LAST % (now, *usage)
        self.transport.write(_chunk(data) + _END)


async def _serve(tick: float) -> None:
    upstream = Upstream()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(upstream), "127.0.0.1", 0, backlog=16_384)
    print(server.sockets[0].getsockname()[1], flush=True)
    due = loop.time()
    while True:
        due = max(due + tick, loop.time())
        await asyncio.sleep(due - loop.time())
        upstream.tick()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tick", type=float, default=0.01, help="seconds between two tokens of a stream")
    uvloop.run(_serve(parser.parse_args().tick))


if __name__ == "__main__":
    main()
