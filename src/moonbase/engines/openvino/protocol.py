"""What gateway and worker say to each other: msgpack messages, each after its length in four bytes.

Both sides come from one installation, so the version only catches a worker that outlived an upgrade.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from moonbase.chat.events import EngineFinish
from moonbase.chat.request import Sampling
from moonbase.engines.base import TokenIds
from moonbase.errors import WorkerDied

VERSION = 2
BLOCK = 32
"""Tokens of a KV cache block: OpenVINO's size on a CPU."""
MAX_FRAME = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Start(Struct, frozen=True, array_like=True, tag="start"):
    """Begin `sampling.n` choices. `prompt` is the memory of an `array('I')`, `grammar` a structural tag's text."""

    generation: int
    prompt: bytes
    sampling: Sampling
    max_tokens: int
    stop_ids: tuple[int, ...]
    grammar: str | None
    cache_scope: str


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Stop one choice, or all with `choice` None. No answer follows."""

    generation: int
    choice: int | None


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    """The first message of a worker whose model is loaded.

    `pid` is its process id, `cache_tokens` the capacity of its KV cache, `step_tokens` how many tokens one step
    computes at most, `load_seconds` how long loading took.
    """

    version: int
    pid: int
    cache_tokens: int
    step_tokens: int
    load_seconds: float


class Unloadable(Struct, frozen=True, array_like=True, tag="unloadable"):
    """The only message of a worker that cannot load the model."""

    reason: str


class Output(Struct, frozen=True, array_like=True):
    """New tokens of one choice. `cached_tokens` counts in the first output of a choice."""

    generation: int
    choice: int
    token_ids: list[int]
    finish: EngineFinish | None
    cached_tokens: int


class Tokens(Struct, frozen=True, array_like=True, tag="tokens"):
    """What one step brought to one gateway; empty as a sign of life."""

    outputs: list[Output]


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """A generation ended without its finish: the cache could not hold it, or the engine refused its configuration."""

    generation: int
    kind: Literal["overloaded", "refused"]
    reason: str


FromGateway = Start | Cancel
FromWorker = Ready | Unloadable | Tokens | Failed

_encoder = msgspec.msgpack.Encoder()
gateway_decoder = msgspec.msgpack.Decoder(FromGateway)
worker_decoder = msgspec.msgpack.Decoder(FromWorker)


def frame(message: FromGateway | FromWorker) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Bytes as they come to whole message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that `data` completes. Raises `WorkerDied` when the stream makes no sense."""
        self._buffer += data
        start = 0
        while len(self._buffer) >= start + _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME:
                raise WorkerDied(f"a frame of {length} bytes was announced")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]


def read(reader: FrameReader, data: bytes) -> Iterator[FromWorker]:
    """What the worker says in `data` and what came before. Raises `WorkerDied` for what no sane worker says."""
    for body in reader.feed(data):
        try:
            message: FromWorker = worker_decoder.decode(body)
        except msgspec.DecodeError as error:
            raise WorkerDied("it sent what is no message") from error
        match message:
            case Ready(version) if version != VERSION:
                raise WorkerDied(f"it speaks version {version} of the protocol, not {VERSION}")
            case Unloadable(reason):
                raise WorkerDied(reason)
        yield message


def token_ids(data: bytes) -> TokenIds:
    return array("I", data)
