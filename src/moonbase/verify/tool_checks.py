"""Checks of tool calls: when they come, what they name, what they carry, how they are streamed."""

import re
from collections.abc import Iterator
from typing import Any

from moonbase.verify.answers import Answer, Call, Json, items, mapping
from moonbase.verify.arguments import SchemaCheck, begins_json, parsed
from moonbase.verify.cases import STORY, WEATHER, called, named, returned, tool, user
from moonbase.verify.probe import Asked, Probe
from moonbase.verify.report import Findings
from moonbase.verify.tasks import together

_ID = re.compile(r"(.+):(0|[1-9][0-9]*)", re.DOTALL)
_CUT = 24  # tokens: after a call has begun, before its arguments have ended


async def required(probe: Probe, found: Findings) -> None:
    for asked in await probe.forced():
        if asked.name is None:
            _check_called(asked, found)


async def named_function(probe: Probe, found: Findings) -> None:
    for asked in await probe.forced():
        if asked.name is not None:
            _check_called(asked, found)
            others = {call.name for call in asked.answer.first.calls} - {asked.name}
            if asked.answer.whole and others:
                found.fail(f"{asked.label}: called {', '.join(sorted(others))}")


def _check_called(asked: Asked, found: Findings) -> None:
    answer = asked.answer
    if not answer.whole:
        found.fail(f"{asked.label}: {answer.failure}")
    elif not answer.first.calls and answer.first.finish_reason != "length":
        found.fail(f"{asked.label}: no call, but {answer.first.content[:40]!r}")


async def auto(probe: Probe, found: Findings) -> None:
    for asked in await probe.auto():
        answer = asked.answer
        if not answer.whole:
            found.fail(f"{asked.label}: {answer.failure}")
        elif not answer.first.calls and not answer.first.content and answer.first.finish_reason != "length":
            found.fail(f"{asked.label}: neither calls nor text")


async def none(probe: Probe, found: Findings) -> None:
    fields = {"messages": [user(WEATHER)], "tools": [tool("get_weather")], "tool_choice": "none"}
    for label, answer in await probe.both("none", fields):
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
        elif answer.first.calls or answer.first.finish_reason == "tool_calls":
            found.fail(f"{label}: called {', '.join([call.name for call in answer.first.calls])}")
        elif not answer.first.content and answer.first.finish_reason != "length":
            found.fail(f"{label}: there is no text")


async def parallel(probe: Probe, found: Findings) -> None:
    fields = probe.with_calls([user(f"{WEATHER} And in Shanghai?")], [tool("get_weather"), tool("set_limits")])
    fields |= {"tool_choice": "required", "parallel_tool_calls": False}
    for label, answer in await probe.both("parallel off", fields):
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
        elif len(answer.first.calls) > 1:
            found.fail(f"{label}: {len(answer.first.calls)} calls")


async def names(probe: Probe, found: Findings) -> None:
    for asked, call in await _calls(probe, found):
        if call.name not in asked.schemas:
            found.fail(f"{asked.label}: called {call.name!r}")


async def arguments_json(probe: Probe, found: Findings) -> None:
    for asked, call in await _calls(probe, found):
        _, broken = parsed(call.arguments)
        if broken is not None:
            found.fail(f"{asked.label}: {broken}: {call.arguments[:60]!r}")


async def arguments_schema(probe: Probe, found: Findings) -> None:
    for asked, call in await _calls(probe, found):
        schema = asked.schemas.get(call.name)
        if schema is None or parsed(call.arguments)[1] is not None:
            continue  # told by the checks of names and of JSON
        if (violation := SchemaCheck.of(schema).violation(call.arguments)) is not None:
            found.fail(f"{asked.label}: {violation}")


async def _calls(probe: Probe, found: Findings) -> list[tuple[Asked, Call]]:
    """The calls of all answers that came to their end."""
    calls = [
        (asked, call)
        for asked in await _all(probe)
        if asked.answer.whole and asked.answer.first.finish_reason != "length"
        for call in asked.answer.first.calls
    ]
    if not calls:
        found.skip("no answer had calls")
    return calls


async def _all(probe: Probe) -> list[Asked]:
    """The answers to all requests with one tool or two."""
    return [*await probe.forced(), *await probe.auto()]


async def fields(probe: Probe, found: Findings) -> None:
    await _calls(probe, found)
    for asked in await _all(probe):
        choices = items(mapping(asked.answer.body).get("choices"))
        if not asked.answer.whole or not choices:
            continue
        calls = items(mapping(choices[0].get("message")).get("tool_calls"))
        for position, call in enumerate(calls):
            function = mapping(call.get("function"))
            shape = (call.get("index"), call.get("type"), call.get("id"), function.get("name"))
            if shape[:2] != (position, "function") or not all(isinstance(text, str) and text for text in shape[2:]):
                found.fail(f"{asked.label}: index, type, id and name are {shape}")
            if not isinstance(function.get("arguments"), str):
                found.fail(f"{asked.label}: arguments are no text but {function.get('arguments')!r}")


async def ids(probe: Probe, found: Findings) -> None:
    await _calls(probe, found)
    for asked in await _all(probe):
        _check_ids(asked.label, asked.answer, 0, found)
    own, foreign = await _later_calls(probe)
    _check_ids("after two calls", own, 2, found)
    _check_ids("after two calls with ids of another form", foreign, 2, found)


def _check_ids(label: str, answer: Answer, first: int, found: Findings) -> None:
    if not answer.whole:
        return
    for number, call in enumerate(answer.first.calls, first):
        shape = _ID.fullmatch(call.id)
        if shape is None or shape[1] != call.name or int(shape[2]) != number:
            found.fail(f"{label}: the id is {call.id!r}, not '{call.name}:{number}'")


async def _later_calls(probe: Probe) -> tuple[Answer, Answer]:
    """Forced calls late in a conversation, with our own ids in its history and with others'."""
    waiting = []
    for first, second in (("get_weather:0", "get_weather:1"), ("call_abc", "call_def")):
        messages = [*_history(probe, first, second), user("And in Shanghai?")]
        fields = probe.with_calls(messages, [tool("get_weather")]) | {"tool_choice": "required"}
        waiting.append(probe.ask("a later call", fields))
    own, foreign = await together(waiting)
    return own, foreign


def _history(probe: Probe, first: str, second: str) -> list[Json]:
    """A conversation with two calls at once and their results."""
    reasoning = None if probe.traits.thinking == "never" else "I look it up."
    cities = [(first, "get_weather", {"city": "Beijing"}), (second, "get_weather", {"city": "Wuhan"})]
    return [
        user(WEATHER),
        called(*cities, reasoning=reasoning),
        returned(first, '{"weather": "sunny"}'),
        returned(second, '{"weather": "rain"}'),
    ]


async def loop(probe: Probe, found: Findings) -> None:
    messages = _history(probe, "get_weather:0", "get_weather:1")
    fields = {"messages": messages, "tools": [tool("get_weather")], "tool_choice": "none"}
    for label, answer in await probe.both("results of two calls", fields):
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")


async def deltas(probe: Probe, found: Findings) -> None:
    streams = [asked for asked in await _all(probe) if asked.answer.whole and asked.answer.chunks]
    if not any(asked.answer.first.calls for asked in streams):
        found.skip("no stream had calls")
    for asked in streams:
        for problem in _delta_problems(asked.answer):
            found.fail(f"{asked.label}: {problem}")


def _delta_problems(answer: Answer) -> Iterator[str]:
    seen = 0
    for chunk in answer.chunks:
        for choice in items(mapping(chunk).get("choices")):
            calls = mapping(choice.get("delta")).get("tool_calls")
            if calls is None:
                continue
            if not calls:
                yield "a delta with an empty list of calls"
            for call in items(calls):
                problem = _first_problem(call) if call.get("index") == seen else _later_problem(call, seen)
                seen += call.get("index") == seen
                if problem is not None:
                    yield problem


def _first_problem(call: Json) -> str | None:
    function = mapping(call.get("function"))
    if not call.get("id") or call.get("type") != "function" or not function.get("name"):
        return f"a call begins with {call}"
    if function.get("arguments") != "":
        return f"a call begins with arguments {function.get('arguments')!r}"
    return None


def _later_problem(call: Json, seen: int) -> str | None:
    if call.get("index") != seen - 1:
        return f"index {call.get('index')!r} after {seen} calls"
    function = call.get("function")
    if not isinstance(function, dict) or call.keys() != {"index", "function"} or function.keys() != {"arguments"}:
        return f"a later delta has more than arguments: {call}"
    return None


async def cut(probe: Probe, found: Findings) -> None:
    fields: dict[str, Any] = probe.with_calls([user("Tell a long story.")], [tool("write_story", STORY)])
    fields |= {"tool_choice": named("write_story"), "max_tokens": _CUT}
    for label, answer in await probe.both("cut", fields):
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
            continue
        count, reason = answer.completion_tokens, answer.first.finish_reason
        if count is not None and count > _CUT:
            found.fail(f"{label}: {count} tokens, max_tokens is {_CUT}")
        if reason == "length":
            for call in answer.first.calls:
                if not begins_json(call.arguments):
                    found.fail(f"{label}: not the beginning of JSON: {call.arguments[:60]!r}")
