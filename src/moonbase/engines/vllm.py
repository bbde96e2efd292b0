"""The `vllm` engine: `/v1/completions` of a vLLM server, prompts and outputs as token ids.

Written against vLLM 0.32, whose answers `tests/engines/vllm_samples` has. Of older ones it needs `return_token_ids`
and an xgrammar whose grammars can ask for tokens (0.2).
"""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from moonbase.chat.events import EngineFinish
from moonbase.config import EngineSettings
from moonbase.engines.base import UNREADABLE, Delta, Engine, GenerateRequest, TokenId, Tokenizer
from moonbase.engines.kept_server import KeptServer, Program, ServerKeeper
from moonbase.engines.openai_models import ServedModels
from moonbase.engines.process import scrubbed
from moonbase.engines.token_server import (
    BAN,
    LEAST_TOP_P,
    Reader,
    Refusal,
    ServerFacts,
    TokenServerEngine,
    Wire,
    local_model,
    python_of,
    warn_of_code,
)

_GREEDY_BELOW = 0.01  # vLLM takes less for greedy, of which it makes one choice only
_MOST_BANS = 1024  # vLLM has room for the biases of so many tokens, and ends with an error over it
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_SPENT = b"[DONE]"


class _Problem(Struct, frozen=True):
    code: int | str | None = None
    param: str | None = None

    def refusal(self, status: int) -> Refusal:
        code = self.code if isinstance(self.code, int) else status
        return Refusal(code, too_long=self.param in ("input_tokens", "max_tokens", "max_completion_tokens"))


class _Refused(Struct, frozen=True):
    error: _Problem


class _Details(Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(Struct, frozen=True):
    prompt_tokens_details: _Details | None = None


class _Choice(Struct, frozen=True):
    """`token_ids` are new ones, the one that the choice stopped at among them."""

    index: int
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None


class _Chunk(Struct, frozen=True):
    """One event: new tokens, or after the last ones the usage, or an error instead of more."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Problem | None = None


class _StreamOptions(Struct, frozen=True):
    include_usage: bool = True


class _StructuredOutputs(Struct, frozen=True):
    structural_tag: str


class _Body(Struct, frozen=True, omit_defaults=True):
    """The body of a request. What a model's own `generation_config.json` may set is set here.

    Of `logit_bias` vLLM takes -100 to 100 for tokens of its vocabulary. With speculative decoding it ignores them.
    """

    model: str
    prompt: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    n: int
    presence_penalty: float
    frequency_penalty: float
    stop_token_ids: tuple[int, ...]
    top_k: int
    min_p: float
    repetition_penalty: float
    stream: bool
    stream_options: _StreamOptions
    return_token_ids: bool
    skip_special_tokens: bool
    request_id: str
    cache_salt: str | None = None
    structured_outputs: _StructuredOutputs | None = None
    logit_bias: dict[int, int] = {}


_encoder = msgspec.json.Encoder()
_chunks = msgspec.json.Decoder(_Chunk)


class VllmWire:
    """Implements `Wire`."""

    name = "vllm"
    path = "/v1/completions"
    facts_path = "/v1/models"

    def facts(self, body: bytes, wanted: str | None) -> ServerFacts:
        model = msgspec.json.decode(body, type=ServedModels).pick(wanted)
        return ServerFacts(model.id, model.max_model_len)

    def body(self, request: GenerateRequest, model: str) -> bytes:
        sampling, grammar = request.sampling, request.grammar
        return _encoder.encode(
            _Body(
                model=model,
                prompt=request.prompt_ids.tolist(),
                max_tokens=request.max_tokens,
                temperature=max(sampling.temperature, _GREEDY_BELOW) if sampling.n > 1 else sampling.temperature,
                top_p=max(sampling.top_p, LEAST_TOP_P),
                n=sampling.n,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                stop_token_ids=request.stop_ids,
                top_k=-1,
                min_p=0.0,
                repetition_penalty=1.0,
                stream=True,
                stream_options=_StreamOptions(),
                return_token_ids=True,
                skip_special_tokens=False,
                request_id=request.request_id,
                cache_salt=request.cache_scope or None,
                structured_outputs=None if grammar is None else _StructuredOutputs(grammar.text),
                logit_bias={} if grammar is None else dict.fromkeys(grammar.banned[:_MOST_BANS], BAN),
            )
        )

    def reader(self, request: GenerateRequest) -> Reader:
        return _Reader(request.sampling.n)

    def refusal(self, status: int, body: bytes) -> Refusal:
        try:
            return msgspec.json.decode(body, type=_Refused).error.refusal(status)
        except UNREADABLE:
            return Refusal(status)


class _Reader:
    """Holds ends of choices back until the usage comes: it tells how much of the prompt was cached."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._ends: list[Delta] = []

    def feed(self, event: bytes) -> list[Delta] | Refusal:
        if event == _SPENT:
            return self._ended(0)
        chunk = _chunks.decode(event)
        if chunk.error is not None:
            return chunk.error.refusal(500)
        deltas: list[Delta] = []
        for choice in chunk.choices:
            ids = choice.token_ids or []
            if choice.finish_reason is not None:
                end = _end(choice.finish_reason)
                if end is None:
                    return Refusal(503)
                if end == "stop":
                    ids = ids[:-1]  # we send no stop strings, so it is a token that it stopped at
                self._ends.append(Delta(choice.index, [], end))
            if ids:
                deltas.append(Delta(choice.index, ids))
        if chunk.usage is not None and len(self._ends) == self._choices and not chunk.choices:
            details = chunk.usage.prompt_tokens_details
            deltas += self._ended((details.cached_tokens or 0) if details else 0)
        return deltas

    def _ended(self, cached: int) -> list[Delta]:
        for delta in self._ends:
            delta.cached_tokens = cached
        ends, self._ends = self._ends, []
        return ends


def _end(reason: str) -> EngineFinish | None:
    """None for a choice that was cut for reasons of the server's own."""
    match reason:
        case "stop":
            return "stop"
        case "length":
            return "length"
        case _:
            return None


def vllm_engine(
    settings: EngineSettings, tokenizer: Tokenizer, model: Path | None = None, keeper: ServerKeeper | None = None
) -> TokenServerEngine:
    """The server at `settings.url`, or without one that of `keeper`, by default one kept here for the folder `model`.

    Raises `ConfigurationError` for a bad address, and when there is no server.
    """
    server = settings.url or keeper or KeptServer(vllm_program(settings, model))
    return TokenServerEngine(settings, tokenizer, VllmWire(), server)


def vllm_program(settings: EngineSettings, model: Path | None) -> Program:
    """The server for the folder `model`. Raises `ConfigurationError` when it cannot be started."""
    folder = local_model("vllm", model)
    warn_of_code("vllm", folder, settings.arguments)
    environment = {**scrubbed(os.environ, ("VLLM_", "HF_HUB_")), **_QUIET}
    command = partial(_command, python_of("vllm"), folder, settings)
    return Program(VllmWire.name, VllmWire.facts_path, command, "VLLM_API_KEY", environment)


def _command(python: str, model: Path, settings: EngineSettings, port: int) -> list[str]:
    """The published recipe (kimi-protocol.md 7.3) without what reads and writes messages, which is our part."""
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", model.name),
        *("--max-num-seqs", str(settings.max_running), "--enable-prompt-tokens-details", *settings.arguments),
    ]


if TYPE_CHECKING:

    def _conforms(wire: VllmWire, engine: TokenServerEngine) -> tuple[Wire, Engine]:
        return wire, engine
