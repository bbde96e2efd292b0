"""A checkpoint folder of Kimi K2's architecture and real vocabulary, small enough for a CPU, for a real vLLM.

    .venv-vllm/bin/python tests/engines/tiny_k2.py VOCABULARY FOLDER [TOKEN=LOGIT ...]

VOCABULARY is a folder with Kimi's `tiktoken.model` and `tokenizer_config.json`. The weights are random with a fixed
seed: the model says anything at all with about equal likelihood, which is the hardest test of a constraint. TOKEN is
liked: its logit is about LOGIT, where those of others are about 0. The tokenizer is what transformers makes of the
vocabulary; it is checked against kimi-protocol.md 1.3 when written.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

BASE_TOKENS, TOKENS = 163_584, 163_840
LIKINGS = {1: 5.6, 163_595: 5.6, 163_596: 1.4}
"""Of a model that ends its strings, calls tools, and leaves it at that: at temperature 0.6 the quotation mark, and the
beginning of a section of calls, are about one token in 16 each, and nine sections in ten end with their first call.
Without, the former are one in 160,000, so that strings go on for a thousand tokens, until one of those comes that end
in a quotation mark, and one section in two gets another call."""
CONSTANT = 0
"""The feature that is 1 in every embedding, so that a row of the output can ask for a constant logit. Layers do not see
it: their norms leave it out, and make up for what it takes from the others."""
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT = "|".join(  # kimi-protocol.md 1.2
    [
        r"""[\p{Han}]+""",
        rf"""[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}""",
        rf"""[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
GOLDENS = {  # kimi-protocol.md 1.3
    "Hello, world!": [19180, 11, 2695, 0],
    "你好，世界": [33845, 378, 2243],
    "I'M don't we'll": [40, 103645, 4536, 20944],
    "1234567 a  b\n\nc": [6694, 12972, 22, 261, 220, 291, 382, 66],
    "🤔🎉": [5885, 97, 242, 5885, 236, 231],
    "functions.mcp__fs-read_file:12": [41937, 1186, 4725, 1025, 4668, 33044, 6101, 25, 1042],
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Beijing"}<|tool_call_end|><|tool_calls_section_end|>': [
        *(163595, 163597, 41937, 1150, 21055, 2800, 25, 15, 163598),
        *(8264, 37666, 1289, 414, 4396, 39556, 16934, 163599, 163596),
    ],
}
CONFIG = {  # kimi-protocol.md 7.1 with the widths shrunk; what the attention kernels depend on is left as it is
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.827,
    "q_lora_rank": 32,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 163584,
    "eos_token_id": 163586,
    "pad_token_id": 163839,
    "torch_dtype": "bfloat16",
}


def tokenizer(vocabulary: Path) -> Any:
    """Kimi's vocabulary with all 256 control tokens at their ids, as the `tokenizers` library has it."""
    from tokenizers import AddedToken
    from transformers.convert_slow_tokenizer import TikTokenConverter

    named = json.loads((vocabulary / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    made = TikTokenConverter(vocab_file=str(vocabulary / "tiktoken.model"), pattern=SPLIT).converted()
    for token_id in range(BASE_TOKENS, TOKENS):
        flags = named.get(str(token_id), {"content": f"<|reserved_token_{token_id}|>", "special": True})
        added = AddedToken(flags["content"], special=flags["special"], normalized=False)
        (made.add_special_tokens if flags["special"] else made.add_tokens)([added])
        assert made.token_to_id(flags["content"]) == token_id, flags
    return made


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The parameters of `CONFIG`'s model, with the names that checkpoints of DeepSeek V3 give them."""
    width, heads, nope = CONFIG["hidden_size"], CONFIG["num_attention_heads"], CONFIG["qk_nope_head_dim"]
    rope, value = CONFIG["qk_rope_head_dim"], CONFIG["v_head_dim"]
    query, latent, experts = CONFIG["q_lora_rank"], CONFIG["kv_lora_rank"], CONFIG["n_routed_experts"]
    yield "model.embed_tokens.weight", (TOKENS, width)
    for layer in range(CONFIG["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        yield from ((f"{block}{name}_layernorm.weight", (width,)) for name in ("input", "post_attention"))
        attention = f"{block}self_attn."
        yield f"{attention}q_a_proj.weight", (query, width)
        yield f"{attention}q_a_layernorm.weight", (query,)
        yield f"{attention}q_b_proj.weight", (heads * (nope + rope), query)
        yield f"{attention}kv_a_proj_with_mqa.weight", (latent + rope, width)
        yield f"{attention}kv_a_layernorm.weight", (latent,)
        yield f"{attention}kv_b_proj.weight", (heads * (nope + value), latent)
        yield f"{attention}o_proj.weight", (width, heads * value)
        if layer < CONFIG["first_k_dense_replace"]:
            yield from _feed_forward(f"{block}mlp.", CONFIG["intermediate_size"])
            continue
        yield f"{block}mlp.gate.weight", (experts, width)
        yield f"{block}mlp.gate.e_score_correction_bias", (experts,)
        for name in ("shared_experts", *[f"experts.{number}" for number in range(experts)]):
            yield from _feed_forward(f"{block}mlp.{name}.", CONFIG["moe_intermediate_size"])
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (TOKENS, width)


def _feed_forward(prefix: str, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = CONFIG["hidden_size"]
    yield f"{prefix}gate_proj.weight", (inner, width)
    yield f"{prefix}up_proj.weight", (inner, width)
    yield f"{prefix}down_proj.weight", (width, inner)


def _tensor(name: str, shape: tuple[int, ...], random: Any, likings: Mapping[int, float]) -> Any:
    import torch

    scale = CONFIG["hidden_size"] ** 0.5  # what a norm makes of a feature that is 1 beside others that are small
    if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")):
        norm = torch.full(shape, scale, dtype=torch.bfloat16)
        norm[CONSTANT] = float(name == "model.norm.weight")
        return norm
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.float32)
    tensor = torch.randn(shape, generator=random) * 0.02
    match name:
        case "model.embed_tokens.weight":
            tensor[:, CONSTANT] = 1
        case "lm_head.weight":
            tensor[:, CONSTANT] = 0
            for token, logit in likings.items():
                tensor[token, CONSTANT] = logit / scale
    return tensor.to(torch.bfloat16)


def write(vocabulary: Path, folder: Path, likings: Mapping[int, float] = MappingProxyType({})) -> None:
    """Write the checkpoint's files, some 50 MB, into `folder`. `likings` are logits by token."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(vocabulary)
    for text, ids in GOLDENS.items():
        assert made.encode(text, add_special_tokens=False).ids == ids, text
    made.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": "[BOS]", "eos_token": "<|im_end|>", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    files = {
        "config.json": CONFIG,
        "generation_config.json": {"eos_token_id": 163586, "max_length": 16384},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16384, **ends},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    random = torch.Generator().manual_seed(0)
    tensors = {name: _tensor(name, shape, random, likings) for name, shape in _shapes()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _likings(texts: list[str]) -> dict[int, float]:
    return {int(token): float(logit) for token, _, logit in (text.partition("=") for text in texts)}


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), _likings(sys.argv[3:]))
