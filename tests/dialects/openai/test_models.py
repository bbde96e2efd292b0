"""The bodies of the small endpoints."""

import json
from decimal import ROUND_FLOOR, Decimal

from hypothesis import given
from hypothesis import strategies as st

from moonbase.dialects.openai.models import ModelEntry, encode_balance, encode_estimate, encode_models


@given(st.integers(-(10**15), 10**15))
def test_amounts_are_printed_exactly_to_five_places(nano: int) -> None:
    printed = json.loads(encode_balance(nano, nano, 0), parse_float=Decimal, parse_int=Decimal)["data"]
    assert printed["available_balance"] == (Decimal(nano) / 10**9).quantize(Decimal("0.00001"), ROUND_FLOOR)
    assert printed["cash_balance"] == 0


def test_the_balance_is_what_the_service_sends() -> None:
    assert encode_balance(49_588_940_000, 46_588_930_000, 3_000_010_000) == (
        b'{"code":0,"data":{"available_balance":49.58894,"voucher_balance":46.58893,"cash_balance":3.00001},'
        b'"scode":"0x0","status":true}'
    )


def test_the_estimate_is_what_the_service_sends() -> None:
    assert encode_estimate(80) == b'{"data":{"total_tokens":80}}'


def test_a_model_has_the_documented_keys() -> None:
    entry = ModelEntry(
        id="kimi-latest",
        created=1,
        context_length=8_192,
        supports_image_in=True,
        supports_video_in=False,
        supports_reasoning=False,
        served_by="echo",
    )
    [model] = json.loads(encode_models([entry]))["data"]
    assert model["object"] == "model"
    assert model["owned_by"] == "moonshot"
    assert model["context_length"] == 8_192
    assert model["permission"][0]["organization"] == "public"
    assert (model["root"], model["parent"]) == ("", "")
