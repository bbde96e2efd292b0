"""Checks of what answers hold and how they end; the last two look at every answer of the run."""

from moonbase.formats.hermes.prompt import CALL as HERMES_CALL
from moonbase.formats.kimi_k2.parser import MISSPELT
from moonbase.formats.kimi_k2.prompt import CALLS, ENVELOPE, THINK
from moonbase.verify.answers import Answer, Choice, Json
from moonbase.verify.arguments import SchemaCheck, begins_json
from moonbase.verify.cases import AS_JSON, CITY, user
from moonbase.verify.probe import Probe
from moonbase.verify.report import Findings

_MARKERS = (*ENVELOPE, *CALLS, *MISSPELT, *THINK, *HERMES_CALL, "<|im_start|>", "[EOS]")


async def json_object(probe: Probe, found: Findings) -> None:
    await _json(probe, found, {"type": "json_object"}, {"type": "object"})


async def json_schema(probe: Probe, found: Findings) -> None:
    schema = {"name": "city", "schema": CITY, "strict": True}
    await _json(probe, found, {"type": "json_schema", "json_schema": schema}, CITY)


async def _json(probe: Probe, found: Findings, wanted: Json, schema: Json) -> None:
    check = SchemaCheck.of(schema)
    for label, answer in await probe.both("JSON", {"messages": [user(AS_JSON)], "response_format": wanted}):
        content = answer.first.content
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
        elif answer.first.finish_reason == "length":
            if not begins_json(content):
                found.fail(f"{label}: cut by max_tokens, it is not the beginning of JSON: {content[:60]!r}")
        elif (violation := check.violation(content)) is not None:
            found.fail(f"{label}: {violation}: {content[:60]!r}")


async def finish(probe: Probe, found: Findings) -> None:
    for label, answer in probe.answers:
        if answer.whole:
            for choice in answer.choices:
                problem = _finish_problem(answer, choice)
                if problem is not None:
                    found.fail(f"{label}: {problem}")


def _finish_problem(answer: Answer, choice: Choice) -> str | None:
    reason = choice.finish_reason
    limit = answer.request.get("max_tokens")
    count = answer.completion_tokens if len(answer.choices) == 1 else None
    if reason not in ("stop", "length", "tool_calls"):
        return f"finish_reason is {reason!r}"
    if reason == "tool_calls" and not choice.calls:
        return "`tool_calls` without a call"
    if reason == "stop" and choice.calls:
        return "`stop` after calls"
    if reason == "length" and count is not None and limit is not None and count < limit:
        return f"`length` after {count} of {limit} tokens"
    return None


async def markers(probe: Probe, found: Findings) -> None:
    for label, answer in probe.answers:
        for choice in answer.choices:
            fields = {"content": choice.content, "reasoning_content": choice.reasoning}
            for call in choice.calls:
                fields |= {"a call's id": call.id, "a call's name": call.name, "arguments": call.arguments}
            for name, text in fields.items():
                leaked = next((marker for marker in _MARKERS if marker in text), None)
                if leaked is not None:
                    found.fail(f"{label}: {name} has {leaked}")
