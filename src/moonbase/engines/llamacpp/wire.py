"""What is said to a `llama-server` and what it says: `/completion` and `/props` (ggml-org/llama.cpp tools/server)."""

import msgspec
from msgspec import Struct

from moonbase.engines.base import UNREADABLE, GenerateRequest, TokenId
from moonbase.errors import ApiError, EngineOverloaded, EngineUnavailable, InvalidRequest, PromptTooLong

KEY_VARIABLE = "MOONBASE_LLAMACPP_KEY"
"""Where a server that is started here finds the key that it demands of us."""
_BAN = -100.0  # and not `false`: at the end of a grammar an end of turn that is banned may be all that is left
_LAST_CHUNK = ("index", "tokens", "stop", "stop_type", "timings")  # without them it repeats prompt and grammar


class Timings(Struct, frozen=True):
    cache_n: int = 0


class Progress(Struct, frozen=True):
    """How far the prompt is; `cache` tokens of it were known."""

    cache: int = 0


class Problem(Struct, frozen=True):
    """`n_ctx` and `n_prompt_tokens` come with a prompt that is too long. `message` may quote the model's output."""

    code: int = 500
    type: str = ""
    message: str = ""
    n_ctx: int | None = None
    n_prompt_tokens: int | None = None


class Chunk(Struct, frozen=True):
    """One event of a stream: new tokens, or how the prompt gets on, or the end, or an error instead of it.

    A token that ends inside a character has no chunk: its text comes with the next, and its id never. The difference
    shows in `tokens_predicted`, which counts all tokens so far. The text of a control token is empty. An end-of-turn
    token is among the tokens of the chunk before the last. `tokens` says nothing beside `prompt_progress`.
    """

    tokens: list[TokenId] = []
    tokens_predicted: int = 0
    content: str = ""
    stop: bool = False
    stop_type: str = ""
    prompt_progress: Progress | None = None
    timings: Timings | None = None
    error: Problem | None = None


class _Failure(Struct, frozen=True):
    error: Problem


class _Generation(Struct, frozen=True):
    n_ctx: int


class Properties(Struct, frozen=True):
    """`n_ctx` is the window of one slot; each of `total_slots` generates one choice at a time."""

    default_generation_settings: _Generation
    total_slots: int
    model_path: str = ""

    @property
    def window(self) -> int:
        return self.default_generation_settings.n_ctx


class _Completion(Struct):
    """The body of `POST /completion`. The server's own sampling defaults are not neutral, so all are set."""

    prompt: list[int]
    n_predict: int
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    repeat_last_n: int
    samplers: tuple[str, ...]
    grammar: str
    logit_bias: list[tuple[int, float]]
    response_fields: tuple[str, ...] = _LAST_CHUNK
    stream: bool = True
    return_tokens: bool = True
    return_progress: bool = True
    repeat_penalty: float = 1.0


_chunk_decoder = msgspec.json.Decoder(Chunk)
_encoder = msgspec.json.Encoder()


def completion(request: GenerateRequest) -> bytes:
    """The body that asks for one choice.

    Penalties look at the last `max_tokens` tokens, so at first at the end of the prompt as well: this server counts
    prompt and output together.
    """
    sampling, grammar = request.sampling, request.grammar
    penalties = bool(sampling.presence_penalty or sampling.frequency_penalty)
    return _encoder.encode(
        _Completion(
            prompt=request.prompt_ids.tolist(),
            n_predict=request.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repeat_last_n=request.max_tokens if penalties else 0,
            samplers=("penalties", "temperature", "top_p") if penalties else ("temperature", "top_p"),
            grammar="" if grammar is None else grammar.text,
            logit_bias=[] if grammar is None else [(token, _BAN) for token in grammar.banned],
        )
    )


def chunk(event: bytes) -> Chunk:
    """Raises one of `UNREADABLE` when it cannot be read as one."""
    return _chunk_decoder.decode(event)


def properties(body: bytes) -> Properties:
    """Raises one of `UNREADABLE` when it cannot be read as one."""
    return msgspec.json.decode(body, type=Properties)


def problem(body: bytes) -> Problem:
    """The error in the body of a response that is not 200."""
    try:
        return msgspec.json.decode(body, type=_Failure).error
    except UNREADABLE:
        return Problem()


def refusal(status: int, found: Problem) -> ApiError:
    """What a client is told when a request was not taken. Nothing of the server's own words gets out."""
    if found.type == "exceed_context_size_error" and found.n_ctx and found.n_prompt_tokens:
        return PromptTooLong(found.n_ctx, found.n_prompt_tokens)
    if status in (400, 413, 422):
        reason = "this schema" if "grammar" in found.message else "this combination of parameters"
        return InvalidRequest(f"the engine cannot serve {reason}")
    return EngineOverloaded() if status == 429 else EngineUnavailable()
