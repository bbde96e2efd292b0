"""Does the server render prompts as the official template does? Their length in tokens tells (kimi-protocol.md 3.6)."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from moonbase.chat.constraint import JsonSchema
from moonbase.chat.prompt import Control
from moonbase.chat.request import Conversation
from moonbase.dialects.openai.decode import decode_chat
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.errors import ConfigurationError, InvalidRequest
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.formats.kimi_k2.revisions import REVISIONS
from moonbase.verify.answers import Json
from moonbase.verify.cases import SEA, WEATHER, called, returned, tool, user
from moonbase.verify.endpoint import Endpoint
from moonbase.verify.report import Findings, Result
from moonbase.verify.tasks import together
from moonbase.verify.vendor import read_lines

RULE = "prompt_tokens"
_TOLERANCE = 3


class PromptCase(Struct, frozen=True):
    """A request, and how many tokens its prompt has."""

    label: str
    fields: Json
    expected: int


class PromptCounter:
    """Counts prompts as one revision of the Kimi K2 format renders them."""

    def __init__(self, revision: str, vocabulary: Path) -> None:
        """`vocabulary` is `tiktoken.model` or its folder. Raises `ConfigurationError` or `ModelFileError`."""
        if revision not in REVISIONS:
            raise ConfigurationError(f"--revision: there is no {revision}; choose from {', '.join(REVISIONS)}")
        self._format = KimiK2(revision)
        self._tokenizer = KimiTokenizer.read(vocabulary) if vocabulary.is_dir() else KimiTokenizer(vocabulary)

    def count(self, fields: Json) -> int:
        """Tokens of the prompt for the request `fields`. Raises `ConfigurationError` for what is no request."""
        try:
            request = decode_chat(msgspec.json.encode({"model": "m"} | fields))
            thinking = request.thinking
            conversation = Conversation(
                messages=request.messages,
                tools=request.tools,
                tool_choice=request.tool_choice,
                thinking=thinking is None or thinking.enabled,
                keep_reasoning=thinking is not None and thinking.keep,
                arguments=tuple([JsonSchema(each.parameters) for each in request.tools]),
            )
            segments = self._format.render(conversation)
        except InvalidRequest as error:
            raise ConfigurationError(f"a case of prompt tokens is no request: {error}") from error
        return sum([1 if isinstance(each, Control) else len(self._tokenizer.encode_plain(each)) for each in segments])


_BUILT_IN: tuple[tuple[str, Json], ...] = (
    ("one question", {"messages": [user(SEA)]}),
    ("a system message", {"messages": [{"role": "system", "content": "Be brief."}, user(SEA)]}),
    ("Chinese and emoji", {"messages": [user("你好 世界 🤔🎉 1234567 — I'M don't")]}),
    ("a marker spelled by the user", {"messages": [user("What does <|im_end|><|im_system|> mean?")]}),
    (
        "turns",
        {"messages": [user("Hi"), {"role": "assistant", "content": "Hello, how are you?"}, user(SEA)]},
    ),
    ("tools", {"messages": [user(WEATHER)], "tools": [tool("get_weather"), tool("book_trip")]}),
    (
        "a tool loop",
        {
            "messages": [
                user(WEATHER),
                called(("get_weather:0", "get_weather", {"city": "Beijing"}), reasoning="I look it up."),
                returned("get_weather:0", '{"weather": "sunny"}'),
            ],
            "tools": [tool("get_weather")],
        },
    ),
    (
        "a tool loop with ids of another form",
        {
            "messages": [
                user(WEATHER),
                called(
                    ("call_abc", "get_weather", {"city": "Beijing"}),
                    ("call_def", "get_weather", {"city": "Wuhan"}),
                    reasoning="I look it up.",
                ),
                returned("call_abc", "sunny"),
                returned("call_def", "rain"),
            ],
            "tools": [tool("get_weather")],
        },
    ),
)


def prompt_cases(counter: PromptCounter | None, file: Path | None) -> tuple[PromptCase, ...]:
    """The built-in cases where `counter` can count them, and those of `file`: lines of messages, tools, expected.

    Raises `ConfigurationError` when a line has no `expected` and nothing counts.
    """
    cases = [] if counter is None else [PromptCase(label, fields, counter.count(fields)) for label, fields in _BUILT_IN]
    for number, line in [] if file is None else read_lines(file):
        fields = {name: value for name, value in line.items() if name != "expected"}
        expected = line.get("expected")
        if expected is None and counter is not None:
            expected = counter.count(fields)
        if not isinstance(expected, int) or not isinstance(fields.get("messages"), list):
            raise ConfigurationError(f"{file}, line {number}: needs `messages` and a number `expected`")
        cases.append(PromptCase(f"{file.name}:{number}" if file else "", fields, expected))
    return tuple(cases)


async def verify_prompt_tokens(
    endpoint: Endpoint, cases: tuple[PromptCase, ...], done: Callable[[], None]
) -> tuple[Result, list[Json]]:
    """The result, and what each case expected and got."""
    found = Findings()

    async def run(case: PromptCase) -> Json:
        answer = await endpoint.chat({"max_tokens": 1} | case.fields)
        usage = answer.usage or answer.first.usage or {}
        got = usage.get("prompt_tokens")
        done()
        if not answer.whole:
            found.fail(f"{case.label}: {answer.failure}")
        elif not isinstance(got, int) or not case.expected <= got <= case.expected + _TOLERANCE:
            found.fail(f"{case.label}: {got} tokens, expected {case.expected} to {case.expected + _TOLERANCE}")
        return {"case": case.label, "expected": case.expected, "got": got}

    figures = await together([run(case) for case in cases])
    rule = f"prompts have the tokens of the official template, or up to {_TOLERANCE} more"
    return found.result(RULE, rule), figures
