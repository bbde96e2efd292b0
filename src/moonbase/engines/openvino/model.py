"""What a model file says about itself, read before any engine is started."""

from pathlib import Path

import msgspec
from msgspec import Struct

from moonbase.config import Count
from moonbase.engines.gguf import GGUF
from moonbase.errors import ModelFileError

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_ELEMENT_BYTES = 2  # the worker keeps its cache in 16-bit floats


class _Config(Struct):
    """The part of a model folder's config.json that is needed."""

    max_position_embeddings: Count
    num_hidden_layers: Count
    hidden_size: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None


class ModelFacts(Struct, frozen=True):
    """The window the model was trained for, in tokens, and what a token takes in the KV cache, in bytes."""

    window: int
    cache_bytes_per_token: int

    @classmethod
    def read(cls, path: Path) -> "ModelFacts":
        """Of a GGUF file or an OpenVINO folder. Raises `ModelFileError` for what cannot be served."""
        return cls._of_folder(path) if path.is_dir() else cls._of_gguf(path)

    @classmethod
    def _of_gguf(cls, path: Path) -> "ModelFacts":
        header = GGUF.read(path)
        if header.architecture not in _ARCHITECTURES:
            raise ModelFileError(
                f"{path}: the openvino engine reads {', '.join(_ARCHITECTURES)} models, not {header.architecture}"
            )
        return cls(header.window, header.cache_elements * _ELEMENT_BYTES)

    @classmethod
    def _of_folder(cls, path: Path) -> "ModelFacts":
        if not (path / "openvino_model.xml").is_file():
            raise ModelFileError(
                f"{path}: holds no openvino_model.xml; give a GGUF file or an exported OpenVINO folder"
            )
        try:
            config = msgspec.json.decode((path / "config.json").read_bytes(), type=_Config)
        except (OSError, msgspec.DecodeError) as error:
            raise ModelFileError(f"{path / 'config.json'}: is missing or not a model's configuration") from error
        width = config.head_dim or config.hidden_size // config.num_attention_heads
        if width < 1:
            raise ModelFileError(f"{path / 'config.json'}: hidden_size is less than num_attention_heads")
        heads = config.num_key_value_heads or config.num_attention_heads
        elements = 2 * config.num_hidden_layers * heads * width
        return cls(config.max_position_embeddings, elements * _ELEMENT_BYTES)
