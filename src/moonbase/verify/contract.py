"""The checks that need no files: the service's contract (moonshot-api.md 2, 3, 9 and kimi-protocol.md 3.4, 3.6)."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from moonbase.verify import chat_checks, output_checks, refusal_checks, stream_checks, thinking_checks, tool_checks
from moonbase.verify.probe import ModelTraits, Probe
from moonbase.verify.report import Findings, Result, Selection
from moonbase.verify.tasks import together

Look = Callable[[Probe, Findings], Awaitable[None]]


class Check(Struct, frozen=True):
    """One rule: `expected` states it, `look` finds what breaks it."""

    name: str
    expected: str
    look: Look


_ALWAYS = (
    Check("chat.completion", "a whole answer has every field, and text that is UTF-8", chat_checks.completion),
    Check("chat.usage", "usage adds up; cached tokens are part of the prompt", chat_checks.usage),
    Check("chat.length", "max_tokens ends an answer as `length` after exactly so many tokens", chat_checks.length),
    Check("chat.stop", "a stop string ends the answer before it", chat_checks.stop),
    Check("stream.frames", "JSON chunks of one id, then [DONE]", stream_checks.frames),
    Check("stream.role", "role in the first chunk of a choice only", stream_checks.role),
    Check("stream.finish", "one finish_reason a choice, in its last chunk", stream_checks.finish),
    Check("stream.usage", "usage inside the last chunk of a choice", stream_checks.usage),
    Check("stream.include_usage", "a last chunk with usage and no choices when asked for", stream_checks.extra_usage),
    Check("stream.equal", "the same answer as without streaming at temperature 0", stream_checks.equal),
    Check("json.object", "response_format json_object gives a JSON object", output_checks.json_object),
    Check("json.schema", "response_format json_schema gives what the schema allows", output_checks.json_schema),
    Check("tools.required", "`required` gives calls", tool_checks.required),
    Check("tools.named", "a named function gives calls of it and of no other", tool_checks.named_function),
    Check("tools.auto", "`auto` gives calls or text", tool_checks.auto),
    Check("tools.none", "`none` gives text and no calls", tool_checks.none),
    Check("tools.parallel", "parallel_tool_calls false gives one call at most", tool_checks.parallel),
    Check("tools.names", "only declared tools are called", tool_checks.names),
    Check("tools.json", "arguments are JSON", tool_checks.arguments_json),
    Check("tools.schema", "arguments are valid under their schema", tool_checks.arguments_schema),
    Check("tools.fields", "a call has index, id, type, name and arguments", tool_checks.fields),
    Check("tools.ids", "ids are `name:index`, counted over the conversation", tool_checks.ids),
    Check("tools.deltas", "a call's first delta names it, the others carry arguments only", tool_checks.deltas),
    Check("tools.loop", "results of calls are accepted and answered", tool_checks.loop),
    Check("tools.cut", "arguments cut by max_tokens are the beginning of JSON", tool_checks.cut),
)
_AT_THE_END = (
    Check("chat.finish", "finish_reason says how the answer ended", output_checks.finish),
    Check("chat.markers", "no marker of the model's protocol in any field", output_checks.markers),
)


def contract_checks(traits: ModelTraits) -> list[Check]:
    """All checks for a model of these traits, those last that look at every answer."""
    checks = list(_ALWAYS)
    if "n" not in traits.fixed:
        checks.append(Check("chat.n", "n choices, each with its own end", chat_checks.choices))
    for refusal in refusal_checks.REFUSALS:
        checks.append(Check(f"errors.{refusal.name}", refusal.expected, refusal.look))
    for name, value in traits.fixed.items():
        look = refusal_checks.FixedParameter(name, value)
        checks.append(Check(f"fixed.{name}", f"{name} is {value}; any other value gives 400", look))
    if traits.thinking != "never":
        checks += [Check(f"thinking.{name}", expected, look) for name, expected, look in thinking_checks.CHECKS]
    if traits.thinking == "optional":
        checks.append(Check("thinking.off", "thinking disabled gives no reasoning", thinking_checks.switched_off))
    return [*checks, *_AT_THE_END]


def chosen_checks(traits: ModelTraits, selection: Selection) -> list[Check]:
    """Those checks of the contract that are wanted."""
    return [check for check in contract_checks(traits) if selection.wants(check.name)]


async def verify_contract(probe: Probe, checks: list[Check], found: list[Result], done: Callable[[], None]) -> None:
    """Run `checks`; each adds to what is `found` and calls `done`."""

    async def run(check: Check) -> None:
        findings = Findings()
        await check.look(probe, findings)
        found.append(findings.result(check.name, check.expected))
        done()

    await together([run(check) for check in checks if check not in _AT_THE_END])
    for check in checks:
        if check in _AT_THE_END:
            await run(check)
