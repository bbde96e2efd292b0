"""The weights of a GGUF file as a folder that vLLM loads: the same numbers, each rounded to 16 bits (bfloat16)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_WINDOW = "llama.context_length"
_CONTROL = 3  # llama.cpp's type of a token without text
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write(file: Path, folder: Path) -> None:
    """Write the model in `file`, of the architecture `llama` with SmolLM's tokenizer, into `folder`."""
    reader = gguf.GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts["general.architecture"] != "llama" or facts["tokenizer.ggml.pre"] != "smollm":
        raise SystemExit(f"{file} is no SmolLM: only that is written for vLLM")
    folder.mkdir(parents=True, exist_ok=True)
    tokens = facts["tokenizer.ggml.tokens"]
    begin, end = tokens[facts["tokenizer.ggml.bos_token_id"]], tokens[facts["tokenizer.ggml.eos_token_id"]]
    files = {
        "config.json": _config(facts, tied="output.weight" not in {tensor.name for tensor in reader.tensors}),
        "generation_config.json": {"eos_token_id": facts["tokenizer.ggml.eos_token_id"]},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": facts[_WINDOW],
            "bos_token": begin,
            "eos_token": end,
            "chat_template": facts["tokenizer.chat_template"],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    _tokenizer(facts).save(str(folder / "tokenizer.json"))
    _save(folder / "model.safetensors", dict(_tensors(reader, facts)))


def _config(facts: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "hidden_act": "silu",
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": facts["llama.rope.freq_base"],
        "max_position_embeddings": facts[_WINDOW],
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "bfloat16",
    }


def _tokenizer(facts: dict[str, Any]) -> Tokenizer:
    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={text: token for token, text in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    special = [text for text, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return made


def _tensors(reader: gguf.GGUFReader, facts: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            weights = _halves_apart(weights, heads[kind])
        prefix = f"model.layers.{block[1]}." if block else ""
        yield f"{prefix}{_NAMES[kind]}.weight", weights


def _halves_apart(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows as transformers rotates them, the halves of a head; llama.cpp has them in pairs."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """In the format of safetensors: the length of a header, the header as JSON, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, weights in tensors.items():
        start = len(data)
        data += _bfloat16(weights).tobytes()
        header[name] = {"dtype": "BF16", "shape": weights.shape, "data_offsets": [start, len(data)]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def _bfloat16(weights: np.ndarray) -> np.ndarray:
    """The upper halves of the floats, rounded to the nearest, of two to the even one."""
    bits = np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
