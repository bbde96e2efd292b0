"""The bodies of the small endpoints: models, token estimate, balance (moonshot-api.md 4 and 5)."""

import msgspec
from msgspec import Struct

_PERMISSION = {
    "created": 0,
    "id": "",
    "object": "",
    "allow_create_engine": False,
    "allow_sampling": False,
    "allow_logprobs": False,
    "allow_search_indices": False,
    "allow_view": False,
    "allow_fine_tuning": False,
    "organization": "public",
    "group": "public",
    "is_blocking": False,
}


class ModelEntry(Struct, frozen=True, kw_only=True):
    """One public id as it is served: real window in tokens, real abilities, and what answers for it."""

    id: str
    created: int
    context_length: int
    supports_image_in: bool
    supports_video_in: bool
    supports_reasoning: bool
    served_by: str


def encode_models(entries: list[ModelEntry]) -> bytes:
    data = [
        {
            "id": entry.id,
            "object": "model",
            "created": entry.created,
            "owned_by": "moonshot",
            "context_length": entry.context_length,
            "supports_image_in": entry.supports_image_in,
            "supports_video_in": entry.supports_video_in,
            "supports_reasoning": entry.supports_reasoning,
            "served_by": entry.served_by,
            "permission": [_PERMISSION],
            "root": "",
            "parent": "",
        }
        for entry in entries
    ]
    return msgspec.json.encode({"object": "list", "data": data})


def encode_estimate(total_tokens: int) -> bytes:
    return b'{"data":{"total_tokens":%d}}' % total_tokens


def encode_balance(available_nano: int, voucher_nano: int, cash_nano: int) -> bytes:
    """Amounts in nano-units of the currency; printed exactly, as decimal numbers with five places or fewer."""
    return b'{"code":0,"data":{"available_balance":%b,"voucher_balance":%b,"cash_balance":%b},%b}' % (
        _decimal(available_nano),
        _decimal(voucher_nano),
        _decimal(cash_nano),
        b'"scode":"0x0","status":true',
    )


def _decimal(nano: int) -> bytes:
    """Nano-units as a JSON number: at most five decimals, rounded down, without trailing zeros."""
    hundred_thousandths = nano // 10_000
    whole, rest = divmod(abs(hundred_thousandths), 100_000)
    sign = "-" if hundred_thousandths < 0 else ""
    return f"{sign}{whole}.{rest:05d}".rstrip("0").rstrip(".").encode()
