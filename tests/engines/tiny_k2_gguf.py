"""A GGUF file of Kimi K2's architecture and real vocabulary, small enough for a CPU, for a real llama.cpp.

    .venv/bin/python tests/engines/tiny_k2_gguf.py VOCABULARY FILE

VOCABULARY is a folder with Kimi's `tiktoken.model` and `tokenizer_config.json`. The weights are random with a fixed
seed: the model says anything at all with about equal likelihood, which is the hardest test of a constraint. `write`
can make it say some tokens more often. What the header says is what ggml-org/llama.cpp `conversion/deepseek.py`
writes for the real model (kimi-protocol.md 8.3).
"""

import binascii
import json
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
from tests.engines.tiny_k2 import CONSTANT

BASE_TOKENS, TOKENS = 163_584, 163_840
WINDOW = 16_384
LAYERS, DENSE_LAYERS, WIDTH, DENSE_WIDTH = 2, 1, 64, 128
EXPERTS, EXPERTS_USED, EXPERT_WIDTH = 384, 8, 32
HEADS, Q_RANK, KV_RANK, NOPE, ROPE, VALUE = 4, 32, 32, 32, 16, 32


def write(vocabulary: Path, file: Path, likings: Mapping[int, float] = MappingProxyType({})) -> None:
    """Write the model, some 50 MB, in a few seconds. `likings` are those of `tiny_k2`."""
    writer = gguf.GGUFWriter(file, "deepseek2")
    _write_shape(writer)
    _write_vocabulary(writer, vocabulary)
    for name, tensor in _tensors(likings):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny-k2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(DENSE_WIDTH)
    writer.add_leading_dense_block_count(DENSE_LAYERS)
    writer.add_vocab_size(TOKENS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(Q_RANK)
    writer.add_kv_lora_rank(KV_RANK)
    writer.add_key_length(KV_RANK + ROPE)
    writer.add_value_length(KV_RANK)
    writer.add_key_length_mla(NOPE + ROPE)
    writer.add_value_length_mla(VALUE)
    writer.add_rope_dimension_count(ROPE)
    writer.add_rope_freq_base(50_000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_yarn_log_mul(0.1)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(EXPERTS_USED)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(EXPERT_WIDTH)
    writer.add_expert_weights_scale(2.827)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _write_vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    lines = (folder / "tiktoken.model").read_bytes().splitlines()
    ranks = {binascii.a2b_base64(token): int(rank) for token, rank in map(bytes.split, lines)}
    assert len(ranks) == BASE_TOKENS
    named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    printable = _printable_bytes()
    tokens = [""] * BASE_TOKENS
    for token, rank in ranks.items():
        tokens[rank] = token.decode("latin-1").translate(printable)
    for token_id in range(BASE_TOKENS, TOKENS):
        tokens.append(named.get(str(token_id), {}).get("content", f"<|reserved_token_{token_id}|>"))
    merges = [_halves(ranks, token, rank) for token, rank in ranks.items() if len(token) > 1]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("kimi-k2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * BASE_TOKENS + [gguf.TokenType.CONTROL] * (TOKENS - BASE_TOKENS))
    writer.add_token_merges([" ".join(half.decode("latin-1").translate(printable) for half in pair) for pair in merges])
    writer.add_bos_token_id(163_584)
    writer.add_eos_token_id(163_585)
    writer.add_pad_token_id(163_839)
    writer.add_add_bos_token(False)


def _printable_bytes() -> dict[int, str]:
    """GPT-2's printable stand-in of each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(256 + index) for index, byte in enumerate(others)}


def _halves(ranks: dict[bytes, int], token: bytes, rank: int) -> list[bytes]:
    """The two tokens that byte pair encoding merges last to get `token`."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        assert pairs[best] < rank, token
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _tensors(likings: Mapping[int, float]) -> "list[tuple[str, np.ndarray]]":
    random = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)

    def ones(width: int) -> np.ndarray:
        return np.ones(width, dtype=np.float32)

    scale = WIDTH**0.5

    def norm(constant: float) -> np.ndarray:
        weights = ones(WIDTH) * scale
        weights[CONSTANT] = constant
        return weights

    embedding, output = matrix(TOKENS, WIDTH), matrix(TOKENS, WIDTH)
    embedding[:, CONSTANT], output[:, CONSTANT] = 1, 0
    for token, logit in likings.items():
        output[token, CONSTANT] = logit / scale
    tensors = [("token_embd.weight", embedding), ("output_norm.weight", norm(1)), ("output.weight", output)]
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": norm(0),
            "attn_q_a.weight": matrix(Q_RANK, WIDTH),
            "attn_q_a_norm.weight": ones(Q_RANK),
            "attn_q_b.weight": matrix(HEADS * (NOPE + ROPE), Q_RANK),
            "attn_kv_a_mqa.weight": matrix(KV_RANK + ROPE, WIDTH),
            "attn_kv_a_norm.weight": ones(KV_RANK),
            "attn_k_b.weight": matrix(HEADS, KV_RANK, NOPE),
            "attn_v_b.weight": matrix(HEADS, VALUE, KV_RANK),
            "attn_output.weight": matrix(WIDTH, HEADS * VALUE),
            "ffn_norm.weight": norm(0),
        }
        if layer < DENSE_LAYERS:
            block |= {
                "ffn_gate.weight": matrix(DENSE_WIDTH, WIDTH),
                "ffn_up.weight": matrix(DENSE_WIDTH, WIDTH),
                "ffn_down.weight": matrix(WIDTH, DENSE_WIDTH),
            }
        else:
            block |= {
                "ffn_gate_inp.weight": matrix(EXPERTS, WIDTH).astype(np.float32),
                "exp_probs_b.bias": np.zeros(EXPERTS, dtype=np.float32),
                "ffn_gate_exps.weight": matrix(EXPERTS, EXPERT_WIDTH, WIDTH),
                "ffn_up_exps.weight": matrix(EXPERTS, EXPERT_WIDTH, WIDTH),
                "ffn_down_exps.weight": matrix(EXPERTS, WIDTH, EXPERT_WIDTH),
                "ffn_gate_shexp.weight": matrix(EXPERT_WIDTH, WIDTH),
                "ffn_up_shexp.weight": matrix(EXPERT_WIDTH, WIDTH),
                "ffn_down_shexp.weight": matrix(WIDTH, EXPERT_WIDTH),
            }
        tensors += [(f"blk.{layer}.{name}", tensor) for name, tensor in block.items()]
    return tensors


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
