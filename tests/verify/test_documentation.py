"""The guide names every check and every fault."""

from pathlib import Path
from typing import get_args

import pytest

from moonbase.config import ModelFault
from moonbase.verify.contract import contract_checks
from moonbase.verify.probe import ModelTraits
from moonbase.verify.prompt_tokens import RULE as PROMPT_RULE
from moonbase.verify.schemas import RULES as SCHEMA_RULES
from moonbase.verify.vendor import RULES as VENDOR_RULES

GUIDE = (Path(__file__).parents[2] / "docs/guides/verifying.md").read_text(encoding="utf-8")
CONTRACT = [check.name for check in contract_checks(ModelTraits(thinking="optional"))]


@pytest.mark.parametrize("name", [*CONTRACT, *SCHEMA_RULES, *VENDOR_RULES, PROMPT_RULE])
def test_every_check_is_in_the_guide(name: str) -> None:
    assert f"`{name}`" in GUIDE


@pytest.mark.parametrize("fault", get_args(ModelFault))
def test_every_fault_of_a_model_is_in_the_guide(fault: str) -> None:
    assert f"`{fault}`" in GUIDE
