"""Requests nobody would write, made from our own description of the interface."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CheckFunction
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.e2e.server import K2, Server

POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE

CHECKS: list[CheckFunction] = [status_code_conformance, content_type_conformance, response_schema_conformance]
ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/tokenizers/estimate-token-count": "POST",
    "/v1/models": "GET",
    "/v1/users/me/balance": "GET",
    "/healthz": "GET",
    "/readyz": "GET",
}


@pytest.fixture(scope="module")
def api(echo: Server) -> BaseSchema:
    return schemathesis.openapi.from_url(echo.base_url.removesuffix("/v1") + "/openapi.json")


@pytest.fixture(autouse=True)
def nothing_breaks(echo: Server) -> Iterator[None]:
    yield
    assert echo.accidents == []
    assert echo.chat().status == 200


def test_every_route_is_described(api: BaseSchema) -> None:
    described = {operation.ok().path: operation.ok().method.upper() for operation in api.get_all_operations()}
    assert described == ROUTES


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        pytest.param(path, mode, id=f"{path}-{mode.value}")
        for path, method in ROUTES.items()
        for mode in ((POSITIVE, NEGATIVE) if method == "POST" else (POSITIVE,))
    ],
)
def test_every_answer_is_documented_and_none_is_an_accident(
    api: BaseSchema, echo: Server, path: str, mode: schemathesis.GenerationMode
) -> None:
    """Positive cases fit the description, negative ones break it."""

    @given(case=api[path][ROUTES[path]].as_strategy(generation_mode=mode))
    @settings(
        max_examples=120 if ROUTES[path] == "POST" else 3,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        if mode is POSITIVE and isinstance(case.body, dict):
            case.body["model"] = K2  # a generated id would be unknown, and nothing else would be looked at
        response = case.call(headers={"Authorization": f"Bearer {echo.key}"})
        if response.status_code >= 500:  # the echo of a prompt need not be the JSON that was demanded of it
            assert response.json()["error"]["type"] == "unexpected_output", response.text
        case.validate_response(response, checks=CHECKS)

    run()
