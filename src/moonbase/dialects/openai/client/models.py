"""What a server of this dialect says of its models (moonshot-api.md 4)."""

import msgspec
from msgspec import Struct


class UpstreamModel(Struct, frozen=True, kw_only=True):
    """One model; `window` is in tokens, None where the server does not tell."""

    id: str
    window: int | None
    image_in: bool
    video_in: bool
    reasoning: bool


class Architecture(Struct):
    input_modalities: list[str] | None = None


class ModelObject(Struct):
    """The names that servers have for the window differ: moonshot's, vLLM's and SGLang's, Groq's, Mistral's."""

    id: str
    context_length: int | None = None
    max_model_len: int | None = None
    context_window: int | None = None
    max_context_length: int | None = None
    supports_image_in: bool | None = None
    supports_video_in: bool | None = None
    supports_reasoning: bool | None = None
    architecture: Architecture | None = None


class ModelList(Struct):
    data: list[ModelObject]


_decode = msgspec.json.Decoder(ModelList).decode


def decode_models(body: bytes) -> tuple[UpstreamModel, ...]:
    """The models of a `/models` body; none when it is not one that can be understood."""
    try:
        listed = _decode(body).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple([_model(wire) for wire in listed])


def _model(wire: ModelObject) -> UpstreamModel:
    windows = (wire.context_length, wire.max_model_len, wire.context_window, wire.max_context_length)
    takes = (wire.architecture.input_modalities if wire.architecture is not None else None) or []
    return UpstreamModel(
        id=wire.id,
        window=next((window for window in windows if window is not None and window > 0), None),
        image_in=bool(wire.supports_image_in) or "image" in takes,
        video_in=bool(wire.supports_video_in) or "video" in takes,
        reasoning=bool(wire.supports_reasoning),
    )
