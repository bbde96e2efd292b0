"""Checks of models that think before they answer (moonshot-api.md 1.7, kimi-protocol.md 2.7)."""

from moonbase.verify.answers import items, mapping
from moonbase.verify.cases import SEA, WEATHER, called, returned, tool, user
from moonbase.verify.probe import Probe
from moonbase.verify.report import Findings


async def reasoning(probe: Probe, found: Findings) -> None:
    for label, answer in await probe.plain():
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
        elif not answer.first.reasoning:
            found.fail(f"{label}: there is no reasoning_content")
        elif not answer.first.content and answer.first.finish_reason == "stop":
            found.fail(f"{label}: everything is reasoning, the content is empty")


async def order(probe: Probe, found: Findings) -> None:
    _, answer = (await probe.plain())[1]
    if not answer.whole or not answer.first.reasoning:
        found.skip("there was no reasoning in a stream")
        return
    kinds = []
    for chunk in answer.chunks:
        for choice in items(mapping(chunk).get("choices")):
            delta = mapping(choice.get("delta"))
            kinds += [name for name in ("reasoning_content", "content") if delta.get(name)]
    if kinds != sorted(kinds, reverse=True):
        found.fail("reasoning_content after content")


async def usage(probe: Probe, found: Findings) -> None:
    for label, answer in await probe.plain():
        counts = answer.usage or answer.first.usage or {}
        details = mapping(counts.get("completion_tokens_details"))
        thought, whole = details.get("reasoning_tokens"), counts.get("completion_tokens")
        if not answer.whole or not answer.first.reasoning:
            found.skip("there was no reasoning")
        elif not isinstance(thought, int) or not isinstance(whole, int) or not 0 < thought <= whole:
            found.fail(f"{label}: reasoning_tokens is {thought!r} of {whole!r}")


async def history(probe: Probe, found: Findings) -> None:
    call = called(("get_weather:0", "get_weather", {"city": "Beijing"}), reasoning="I look it up.")
    messages = [user(WEATHER), call, returned("get_weather:0", "sunny")]
    for label, answer in await probe.both("a tool loop", {"messages": messages, "tools": [tool("get_weather")]}):
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")


async def switched_off(probe: Probe, found: Findings) -> None:
    off = {"messages": [user(SEA)], "thinking": {"type": "disabled"}}
    for label, answer in await probe.both("thinking disabled", off):
        if not answer.whole:
            found.fail(f"{label}: {answer.failure}")
        elif answer.first.reasoning:
            found.fail(f"{label}: there is reasoning_content")


CHECKS = (
    ("reasoning", "the answer has reasoning_content and content", reasoning),
    ("order", "a stream gives reasoning before content", order),
    ("usage", "usage counts the reasoning tokens", usage),
    ("history", "reasoning_content of earlier turns is accepted", history),
)
