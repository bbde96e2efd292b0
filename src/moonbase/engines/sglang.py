"""The `sglang` engine: `/generate` of an SGLang server, prompts and outputs as token ids.

Written after SGLang's documentation and source, and not run against a real one. Constraints need an xgrammar in it
whose grammars can ask for tokens (0.2).
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

_SPENT = b"[DONE]"
_KEY_VARIABLE = "MOONBASE_SGLANG_KEY"
_LAUNCH = f"""import os, runpy, sys
sys.argv[1:1] = ["--api-key", os.environ.pop("{_KEY_VARIABLE}")]
runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
"""
# What `python -m sglang.launch_server` does, with a key. SGLang takes one as an argument only, and those of a process
# can be read by every account of the machine; its environment by ours alone.
_TOO_LONG = ("longer than the model's context length", "exceeds the model's maximum context length")


class _Finish(Struct, frozen=True):
    """`type` is `stop`, `length` or `abort`; `matched` the token that it stopped at."""

    type: str
    matched: int | str | None = None
    status_code: int | None = None
    message: str | None = None


class _Meta(Struct, frozen=True):
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: _Finish | None = None


class _Problem(Struct, frozen=True):
    message: str = ""
    code: int | str | None = None


class _Chunk(Struct, frozen=True):
    """One event of a choice. `output_ids` are the new tokens, or all there are, as the server was started."""

    output_ids: list[TokenId] = []
    meta_info: _Meta = _Meta()
    index: int = 0
    error: _Problem | None = None


class _Refused(Struct, frozen=True):
    error: _Problem


class _Sampling(Struct, frozen=True, omit_defaults=True):
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    n: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    stop_token_ids: tuple[int, ...]
    structural_tag: str | None = None
    logit_bias: dict[int, int] = {}


class _Body(Struct, frozen=True, omit_defaults=True):
    """`extra_key` separates prefix caches."""

    input_ids: list[int]
    sampling_params: _Sampling
    stream: bool
    rid: str
    extra_key: str | None = None


_encoder = msgspec.json.Encoder()
_chunks = msgspec.json.Decoder(_Chunk)


class SglangWire:
    """Implements `Wire`."""

    name = "sglang"
    path = "/generate"
    facts_path = "/v1/models"

    def facts(self, body: bytes, wanted: str | None) -> ServerFacts:
        model = msgspec.json.decode(body, type=ServedModels).pick(wanted)
        return ServerFacts(model.id, model.max_model_len)

    def body(self, request: GenerateRequest, model: str) -> bytes:
        sampling, grammar = request.sampling, request.grammar
        return _encoder.encode(
            _Body(
                input_ids=request.prompt_ids.tolist(),
                sampling_params=_Sampling(
                    max_new_tokens=request.max_tokens,
                    temperature=sampling.temperature,
                    top_p=max(sampling.top_p, LEAST_TOP_P),
                    top_k=-1,
                    min_p=0.0,
                    n=sampling.n,
                    presence_penalty=sampling.presence_penalty,
                    frequency_penalty=sampling.frequency_penalty,
                    repetition_penalty=1.0,
                    stop_token_ids=request.stop_ids,
                    structural_tag=None if grammar is None else grammar.text,
                    logit_bias={} if grammar is None else dict.fromkeys(grammar.banned, BAN),
                ),
                stream=True,
                rid=request.request_id,
                extra_key=request.cache_scope or None,
            )
        )

    def reader(self, request: GenerateRequest) -> Reader:
        return _Reader(request)

    def refusal(self, status: int, body: bytes) -> Refusal:
        try:
            problem = msgspec.json.decode(body, type=_Refused).error
        except UNREADABLE:
            return Refusal(status)
        return _refusal(status, problem.message)


class _Reader:
    """Knows how many tokens of each choice have been seen."""

    def __init__(self, request: GenerateRequest) -> None:
        self._stop_ids = request.stop_ids
        self._seen: dict[int, int] = {}

    def feed(self, event: bytes) -> list[Delta] | Refusal:
        if event == _SPENT:
            return []
        chunk = _chunks.decode(event)
        if chunk.error is not None:
            return _refusal(chunk.error.code if isinstance(chunk.error.code, int) else 400, chunk.error.message)
        meta, finish = chunk.meta_info, chunk.meta_info.finish_reason
        if finish is not None and finish.type not in ("stop", "length"):
            return _refusal(finish.status_code or 503, finish.message or "")
        seen = self._seen.get(chunk.index, 0)
        self._seen[chunk.index] = meta.completion_tokens
        new = meta.completion_tokens - seen
        ids = chunk.output_ids[-new:] if new > 0 else []
        end: EngineFinish | None = None
        if finish is not None:
            end = "stop" if finish.type == "stop" else "length"
            if end == "stop" and ids and (ids[-1] == finish.matched or ids[-1] in self._stop_ids):
                ids = ids[:-1]
        if not ids and end is None:
            return []
        return [Delta(chunk.index, ids, end, 0 if seen else meta.cached_tokens)]


def _refusal(status: int, message: str) -> Refusal:
    return Refusal(status, too_long=any(text in message for text in _TOO_LONG))


def sglang_engine(
    settings: EngineSettings, tokenizer: Tokenizer, model: Path | None = None, keeper: ServerKeeper | None = None
) -> TokenServerEngine:
    """The server at `settings.url`, or without one that of `keeper`, by default one kept here for the folder `model`.

    Raises `ConfigurationError` for a bad address, and when there is no server.
    """
    server = settings.url or keeper or KeptServer(sglang_program(settings, model))
    return TokenServerEngine(settings, tokenizer, SglangWire(), server)


def sglang_program(settings: EngineSettings, model: Path | None) -> Program:
    """The server for the folder `model`. Raises `ConfigurationError` when it cannot be started."""
    folder = local_model("sglang", model)
    warn_of_code("sglang", folder, settings.arguments)
    environment = scrubbed(os.environ, ("SGLANG_", "HF_HUB_"))
    command = partial(_command, python_of("sglang"), folder, settings)
    return Program(SglangWire.name, SglangWire.facts_path, command, _KEY_VARIABLE, environment)


def _command(python: str, model: Path, settings: EngineSettings, port: int) -> list[str]:
    """The published recipe (kimi-protocol.md 7.3) without what reads and writes messages, which is our part."""
    return [
        *(python, "-c", _LAUNCH, "--model-path", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", model.name),
        *("--max-running-requests", str(settings.max_running), *settings.arguments),
    ]


if TYPE_CHECKING:

    def _conforms(wire: SglangWire, engine: TokenServerEngine) -> tuple[Wire, Engine]:
        return wire, engine
