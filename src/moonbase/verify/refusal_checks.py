"""Requests that must be refused, and how (moonshot-api.md 9, kimi-protocol.md 3.6)."""

from typing import Any

from msgspec import Struct

from moonbase.verify.answers import Answer, Json, mapping
from moonbase.verify.cases import SEA, WEATHER, called, returned, tool, user
from moonbase.verify.probe import Probe
from moonbase.verify.report import Findings

_INVALID = "invalid_request_error"
_CALL = called(("get_weather:0", "get_weather", {"city": "Beijing"}), reasoning="")
_WEATHER_TOOL = tool("get_weather")
_UNKNOWN_KEY = "sk-moonbase-verify-is-no-key"


class Refusal(Struct, frozen=True):
    """A request that must get `status` and, where one is given, the error type. `key` is sent in place of the own."""

    name: str
    expected: str
    fields: Json
    status: int = 400
    types: tuple[str, ...] = (_INVALID,)
    key: str | None = ""

    async def look(self, probe: Probe, found: Findings) -> None:
        fields = {"messages": [user(SEA)], "max_tokens": 16} | self.fields
        answer = await probe.ask(self.expected, fields, key=self.key)
        for problem in refusal_problems(answer, self.status, self.types):
            found.fail(problem)


def refusal_problems(answer: Answer, status: int, types: tuple[str, ...]) -> list[str]:
    """How an answer is not the error that it should be."""
    if answer.status != status:
        return [f"status {answer.status}" + (f": {answer.failure}" if answer.status >= 400 else "")]
    error = mapping(answer.body).get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str) or not error["message"]:
        return [f"the body is not {{'error': {{'message', 'type'}}}}: {str(answer.body)[:80]}"]
    problems = []
    if error.get("type") not in types:
        problems.append(f"the error's type is {error.get('type')!r}, not {' or '.join(types)}")
    if not answer.content_type.startswith("application/json"):
        problems.append(f"the content type is {answer.content_type!r}")
    return problems


class FixedParameter:
    """One value of a parameter is accepted, others are refused (moonshot-api.md 1.2)."""

    def __init__(self, name: str, value: Any) -> None:
        self._name = name
        self._value = value

    async def __call__(self, probe: Probe, found: Findings) -> None:
        name, value = self._name, self._value
        right = await probe.ask(f"{name} {value}", {"messages": [user(SEA)], "max_tokens": 16, name: value})
        if not right.whole:
            found.fail(f"{value}: {right.failure}")
        other = value + 1 if name in ("n", "top_k") else value / 2 if value else 0.5
        wrong = await probe.ask(f"{name} {other}", {"messages": [user(SEA)], "max_tokens": 16, name: other})
        for problem in refusal_problems(wrong, 400, (_INVALID,)):
            found.fail(f"{other}: {problem}")


def _tools(*tools: Json, **fields: Any) -> Json:
    return {"messages": [user(WEATHER)], "tools": list(tools)} | fields


def _function(**function: Any) -> Json:
    return {"type": "function", "function": _WEATHER_TOOL["function"] | function}


REFUSALS = (
    Refusal("messages_empty", "400 for no messages", {"messages": []}),
    Refusal("tool_choice_unknown", "400 for an unknown tool_choice", _tools(_WEATHER_TOOL, tool_choice="sometimes")),
    Refusal("required_without_tools", "400 for `required` without tools", {"tool_choice": "required"}),
    Refusal("required_with_no_tools", "400 for `required` with an empty list of tools", _tools(tool_choice="required")),
    Refusal("tool_type", "400 for an unknown type of tool", _tools({**_WEATHER_TOOL, "type": "gadget"})),
    Refusal("tool_name_digit", "400 for a name that begins with a digit", _tools(_function(name="1weather"))),
    Refusal("tool_name_sign", "400 for a name with other characters", _tools(_function(name="get weather!"))),
    Refusal("tool_name_twice", "400 for two tools of one name", _tools(_WEATHER_TOOL, _WEATHER_TOOL)),
    Refusal("tool_root", "400 for parameters that are no object", _tools(_function(parameters={"type": "array"}))),
    Refusal(
        "tool_reference",
        "400 for a $ref that leads nowhere",
        _tools(_function(parameters={"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})),
    ),
    Refusal(
        "result_without_id",
        "400 for a tool message without tool_call_id",
        _tools(_WEATHER_TOOL, messages=[user(WEATHER), _CALL, {"role": "tool", "content": "sunny"}]),
    ),
    Refusal(
        "result_unknown_id",
        "400 for the result of a call that was not made",
        _tools(
            _WEATHER_TOOL,
            messages=[user(WEATHER), _CALL, returned("get_weather:0", "sunny"), returned("get_weather:7", "rain")],
        ),
    ),
    Refusal(
        "result_missing",
        "400 for a call without its result",
        _tools(_WEATHER_TOOL, messages=[user(WEATHER), _CALL, user("And in Shanghai?")]),
    ),
    Refusal("format_unknown", "400 for an unknown response_format", {"response_format": {"type": "yaml"}}),
    Refusal("format_no_schema", "400 for json_schema without a schema", {"response_format": {"type": "json_schema"}}),
    Refusal(
        "model_unknown",
        "404 for an unknown model",
        {"model": "moonbase-verify-no-such-model"},
        404,
        ("resource_not_found_error",),
    ),
    Refusal(
        "key_missing",
        "401 without a key",
        {},
        401,
        ("incorrect_api_key_error", "invalid_authentication_error"),
        key=None,
    ),
    Refusal(
        "key_unknown",
        "401 for an unknown key",
        {},
        401,
        ("invalid_authentication_error", "incorrect_api_key_error"),
        key=_UNKNOWN_KEY,
    ),
)
