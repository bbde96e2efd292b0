"""Requests nobody would write, made from our own description of the interface."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CheckFunction
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.e2e.administrator import admin
from tests.e2e.conftest import StartServer
from tests.e2e.server import K2, Server, eventually

from moonbase.dialects.anthropic.dialect import MESSAGES
from moonbase.server.admin_operations import OPERATIONS, Operation

POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE

CHECKS: list[CheckFunction] = [status_code_conformance, content_type_conformance, response_schema_conformance]
ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/tokenizers/estimate-token-count": "POST",
    **dict.fromkeys([*MESSAGES, *[f"{path}/count_tokens" for path in MESSAGES]], "POST"),
    "/v1/models": "GET",
    "/v1/users/me/balance": "GET",
    "/v1/usage": "GET",
    "/v1/usage/{id}": "GET",
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
    operations = [operation.ok() for operation in api.get_all_operations()]
    described = sorted([(operation.path, operation.method.upper()) for operation in operations])
    assert described == sorted([*ROUTES.items(), *[(each.path, each.method) for each in OPERATIONS]])


def send(case: schemathesis.Case, echo: Server) -> int:
    """The status of the answer, which is documented and no accident."""
    response = case.call(headers={"Authorization": f"Bearer {echo.key}"})
    if response.status_code >= 500:  # the echo of a prompt need not be what was demanded of it
        assert response.json()["error"]["type"] == "unexpected_output", response.text
    case.validate_response(response, checks=CHECKS)
    return int(response.status_code)


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        pytest.param(path, mode, id=f"{path}-{mode.value}")
        for path, method in ROUTES.items()
        if not path.startswith(MESSAGES[1:])  # the same endpoint at another address
        for mode in ((POSITIVE, NEGATIVE) if method == "POST" else (POSITIVE,))
    ],
)
def test_every_answer_is_documented_and_none_is_an_accident(
    api: BaseSchema, echo: Server, path: str, mode: schemathesis.GenerationMode
) -> None:
    """Positive cases fit the description, negative ones break it."""

    @given(case=api[path][ROUTES[path]].as_strategy(generation_mode=mode))
    @settings(
        max_examples=60 if ROUTES[path] == "POST" else 3,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        if mode is POSITIVE and isinstance(case.body, dict):
            case.body["model"] = K2  # a generated id would be unknown, and nothing else would be looked at
        send(case, echo)

    run()


@pytest.fixture(scope="module")
def administered(start_module_server: StartServer) -> tuple[Server, str, BaseSchema]:
    """A server of its own, for it will be changed a lot, the secret of an admin key, and the description."""
    server = start_module_server()
    secret = admin(server, "admin", "create", "--name", "ops")
    eventually(lambda: server.get("/admin/v1/organizations", key=secret).status == 200)
    return server, secret, schemathesis.openapi.from_url(server.base_url.removesuffix("/v1") + "/openapi.json")


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"{operation.method}-{operation.path}-{mode.value}")
        for operation in OPERATIONS
        for mode in ((POSITIVE, NEGATIVE) if operation.body is not None else (POSITIVE,))
    ],
)
def test_every_answer_to_an_administrator_is_documented_and_none_is_an_accident(
    administered: tuple[Server, str, BaseSchema], operation: Operation, mode: schemathesis.GenerationMode
) -> None:
    server, secret, described = administered

    @given(case=described[operation.path][operation.method].as_strategy(generation_mode=mode))
    @settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def run(case: schemathesis.Case) -> None:
        response = case.call(headers={"Authorization": f"Bearer {secret}"})
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=CHECKS)

    run()
    assert server.accidents == []


# The description leaves the inside of tools open, and conversations drawn from it hardly ever have roles.
NAMES = st.sampled_from(["look", "see", "get_weather"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.text(max_size=3) | st.sampled_from(["string", "#/$defs/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object", ["string", "null"]])
KEYWORDS = {
    "minLength": st.integers(0, 9),
    "maxLength": st.integers(9, 40),
    "minimum": st.floats(-9, 9),
    "minItems": st.integers(0, 2),
    "enum": st.lists(st.none() | st.integers() | st.text(max_size=3), min_size=1, max_size=3),
    "pattern": st.text("ab()[]{}*+?|^$.\\d1,-", max_size=8),
    "description": st.text(max_size=5),
    "$ref": st.sampled_from(["#", "#/$defs/a"]),
    "format": st.just("date"),
    "oneOf": ANYTHING,
}
PROPERTIES = st.sampled_from(["a", "b", "", "é", '"', "$ref", "<|im_end|>"])
SCHEMAS = st.recursive(
    st.fixed_dictionaries({"type": TYPES}, optional=KEYWORDS) | st.fixed_dictionaries({"type": TYPES}),
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(PROPERTIES, inner, max_size=3)},
            optional={"required": st.lists(PROPERTIES, max_size=1), "additionalProperties": inner},
        )
        | st.fixed_dictionaries({"type": st.just("array"), "items": inner})
        | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
    ),
    max_leaves=8,
)
PARAMETERS = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(PROPERTIES, SCHEMAS, max_size=3)},
    optional={"$defs": st.dictionaries(st.just("a"), SCHEMAS), "required": st.lists(PROPERTIES, max_size=1)},
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": NAMES, "parameters": PARAMETERS},
                optional={"description": ANYTHING, "strict": st.booleans() | st.none()},
            ),
        },
        optional={"x": ANYTHING},
    ),
    max_size=3,
    unique_by=lambda tool: tool["function"]["name"],
)
CHOICES = st.sampled_from([None, "auto", "none", "required"]) | NAMES.map(
    lambda name: {"type": "function", "function": {"name": name}}
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(min_size=1, max_size=5) | st.sampled_from(["look:0", "functions.see:7", "look:99999999999"]),
            "function": st.fixed_dictionaries(
                {
                    "name": NAMES | st.text(min_size=1, max_size=3),
                    "arguments": st.text(max_size=5) | st.just({"a": [None]}),
                }
            ),
        }
    ),
    max_size=3,
    unique_by=lambda call: call["id"],
)


def conversation(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A tool loop of these calls, each with its result, in another order."""
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "5"} for call in reversed(calls)]
    said = [{"role": "assistant", "content": None, "tool_calls": calls}, *results] if calls else []
    return [{"role": "user", "content": "Hello"}, *said]


def test_tools_of_any_shape_and_any_calls_of_them_are_no_accident(api: BaseSchema, echo: Server) -> None:
    statuses: Counter[int] = Counter()

    @given(
        fields=st.fixed_dictionaries(
            {"tools": TOOLS, "messages": CALLS.map(conversation)},
            optional={
                "tool_choice": CHOICES,
                "parallel_tool_calls": st.booleans(),
                "thinking": st.sampled_from([{"type": "enabled"}, {"type": "disabled"}]),
            },
        )
    )
    @settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def run(fields: dict[str, Any]) -> None:
        case = api["/v1/chat/completions"]["POST"].Case(body={"model": K2, **fields}, media_type="application/json")
        statuses[send(case, echo)] += 1

    run()
    assert min(statuses[200], statuses[400]) > 40, statuses
