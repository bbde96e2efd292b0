"""A client of chat completions that streams its answers."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from msgspec import Struct

from benchmarks.chat_server import ChatServer
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.events import EventReader


class Message(Struct, frozen=True):
    role: str
    content: str


class Answer(Struct, frozen=True):
    """What a client got: the text, the server's counts of tokens, and how long it took.

    `cached` are tokens of the prompt that the server did not have to compute; `whole` is whether the answer goes to its
    limit.
    """

    text: str
    prompt: int
    cached: int
    tokens: int
    whole: bool
    seconds: float


class _StreamOptions(Struct, frozen=True):
    include_usage: bool = True


class _Body(Struct, frozen=True):
    model: str
    messages: Sequence[Message]
    max_tokens: int
    temperature: float = 0.0
    stream: bool = True
    stream_options: _StreamOptions = _StreamOptions()


class _Delta(Struct, frozen=True):
    content: str | None = None


class _Choice(Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Details(Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(Struct, frozen=True):
    """Kimi's API has the known tokens in a field of their own, OpenAI's in the details of the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def known(self) -> int:
        details = self.prompt_tokens_details
        return self.cached_tokens or (0 if details is None else details.cached_tokens or 0)


class _Chunk(Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Chunk).decode


class Client:
    """Asks one server; greedy, and with no more than the parameters that all servers have."""

    def __init__(self, server: ChatServer, upstream: UpstreamClient) -> None:
        self._model = server.model
        self._name = server.name
        self._headers = {"Content-Type": "application/json", **server.headers}
        self._upstream = upstream

    async def chat(self, messages: Sequence[Message], limit: int) -> Answer:
        """Ends the program when the server refuses, or does not say what it used."""
        began = time.monotonic()
        body = _encode(_Body(self._model, messages, limit))
        events, pieces = EventReader(), list[str]()
        usage: _Usage | None = None
        finish: str | None = None
        async with self._upstream.request("POST", "/chat/completions", headers=self._headers, body=body) as response:
            if response.status != 200:
                raise SystemExit(f"{self._name}: {response.status}: {(await response.body(100_000)).decode()}")
            while data := await response.read():
                for event in events.feed(data):
                    if event == b"[DONE]":
                        continue
                    chunk = _decode(event)
                    usage = chunk.usage or usage
                    for choice in chunk.choices:
                        pieces.append(choice.delta.content or "")
                        finish = choice.finish_reason or finish
        if usage is None:
            raise SystemExit(f"{self._name}: an answer without usage")
        return Answer(
            "".join(pieces),
            usage.prompt_tokens,
            usage.known,
            usage.completion_tokens,
            finish == "length",
            time.monotonic() - began,
        )


@asynccontextmanager
async def client_of(server: ChatServer) -> AsyncIterator[Client]:
    async with UpstreamClient(f"http://127.0.0.1:{server.port}/v1") as upstream:
        yield Client(server, upstream)
