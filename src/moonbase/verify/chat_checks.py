"""Checks of plain answers: their fields, their usage, where they end."""

from typing import Any

from moonbase.verify.answers import Answer, Json, items, mapping
from moonbase.verify.cases import SEA, user
from moonbase.verify.probe import Probe
from moonbase.verify.report import Findings
from moonbase.verify.tasks import together

_STOP_BYTES = 32


async def completion(probe: Probe, found: Findings) -> None:
    for label, answer in await probe.plain():
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
            continue
        if not answer.streamed:
            _check_body(label, answer, found)
        choice = answer.first
        if len(answer.choices) != 1:
            found.fail(f"{label}: {len(answer.choices)} choices")
        if not choice.content and choice.finish_reason != "length":
            found.fail(f"{label}: the content is empty")
        if "\ufffd" in choice.content + choice.reasoning:
            found.fail(f"{label}: the text has U+FFFD: characters were cut, or bytes are no UTF-8")


def _check_body(label: str, answer: Answer, found: Findings) -> None:
    body = mapping(answer.body)
    for name, kind in (("id", str), ("created", int), ("model", str), ("choices", list), ("usage", dict)):
        if not isinstance(body.get(name), kind) or not body[name]:
            found.fail(f"{label}: `{name}` is {body.get(name)!r}")
    if body.get("object") != "chat.completion":
        found.fail(f"{label}: `object` is {body.get('object')!r}")
    first = next(iter(items(body.get("choices"))), {})
    if first.get("index") != 0 or mapping(first.get("message")).get("role") != "assistant":
        found.fail(f"{label}: the choice has not index 0 and role assistant")


async def usage(probe: Probe, found: Findings) -> None:
    for label, answer in [*await probe.plain(), *await probe.limited()]:
        if answer.whole and not answer.streamed:
            for problem in usage_problems(answer.usage):
                found.fail(f"{label}: {problem}")


def usage_problems(usage: Any) -> list[str]:
    """What is wrong with a usage object."""
    if not isinstance(usage, dict):
        return ["there is no usage"]
    prompt, completion, total = [usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    if not (isinstance(prompt, int) and isinstance(completion, int) and isinstance(total, int)):
        return [f"usage is {usage}"]
    problems = []
    if prompt + completion != total:
        problems.append(f"{prompt} + {completion} is not {total}")
    if prompt == 0:
        problems.append("prompt_tokens is 0")
    cached = usage.get("cached_tokens", 0)
    if not isinstance(cached, int) or not 0 <= cached <= prompt:
        problems.append(f"cached_tokens is {cached} of {prompt} prompt tokens")
    return problems


async def length(probe: Probe, found: Findings) -> None:
    for label, answer in await probe.limited():
        count, reason = answer.completion_tokens, answer.first.finish_reason
        limit = answer.request["max_tokens"]
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
        elif count is not None and count > limit:
            found.fail(f"{label}: {count} tokens")
        elif reason == "length" and count not in (None, limit):
            found.fail(f"{label}: `length` after {count} tokens")
        elif reason != "length" and count == limit:
            found.fail(f"{label}: finish_reason is {reason!r} at the limit")
        elif reason != "length":
            found.warn(f"{label}: the model stopped by itself after {count} tokens, so the limit was not tried")


async def stop(probe: Probe, found: Findings) -> None:
    """Takes a stop string out of the middle of an answer, and asks again."""
    _, answer = (await probe.plain())[0]
    text = answer.first.content
    cut_at = text.find(" ", len(text) // 3)
    stop = text[cut_at : cut_at + 6]
    if not answer.whole or cut_at < 0 or text.find(stop) != cut_at or len(stop.encode()) > _STOP_BYTES:
        found.skip("no stop string could be taken out of an answer")
        return
    for label, stopped in await probe.both("with stop", {"messages": [user(SEA)], "stop": [stop]}):
        content = stopped.first.content
        if not stopped.whole:
            found.fail(f"{label}: {stopped.failure}")
        elif stop in content:
            found.fail(f"{label}: the stop string {stop!r} is in the answer")
        elif content == text[:cut_at] and stopped.first.finish_reason != "stop":
            found.fail(f"{label}: finish_reason is {stopped.first.finish_reason!r}")
        elif content != text[:cut_at]:
            found.warn(f"{label}: another answer than before, so the stop string may not have come up")


async def choices(probe: Probe, found: Findings) -> None:
    fields: Json = {"messages": [user(SEA)], "n": 2}
    if probe.greedy:
        fields["temperature"] = 0.6
    answers = await together([probe.ask("n 2", fields), probe.ask("n 2", fields, stream=True)])
    for label, answer in zip(("n 2", "n 2, streamed"), answers, strict=True):
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
            continue
        numbers = [choice.index for choice in answer.choices]
        if numbers != [0, 1]:
            found.fail(f"{label}: the choices are {numbers}")
        if not all(choice.finish_reason for choice in answer.choices):
            found.fail(f"{label}: a choice has no finish_reason")
