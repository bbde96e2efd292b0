"""What the checks of the contract share: how to ask, and answers that more than one of them looks at."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from moonbase.verify.answers import Answer, Json
from moonbase.verify.cases import LONG, SCHEMAS, SEA, WEATHER, named, tool, user
from moonbase.verify.endpoint import Endpoint
from moonbase.verify.tasks import together

ThinkingKind = Literal["never", "optional", "always"]
_SECOND = "no_arguments"
_COLD_THINKING = {"thinking": {"type": "disabled"}}


class ModelTraits(Struct, frozen=True, kw_only=True):
    """What the model is known to be.

    `thinking` that is optional is switched off for forced calls, which do not go together with it (moonshot-api.md
    1.5). `fixed` are the parameters for which it accepts one value only (1.2); they are not sent.
    """

    thinking: ThinkingKind = "never"
    fixed: Mapping[str, Any] = {}
    max_tokens: int = 2000


class Asked(Struct, frozen=True):
    """An answer to a request with the tools `schemas`. `name` is the one that it demanded, if it named one."""

    label: str
    answer: Answer
    schemas: Mapping[str, Json]
    name: str | None


class Probe:
    """Asks each question once, however many checks want the answer. `answers` keeps all of them."""

    def __init__(self, endpoint: Endpoint, traits: ModelTraits) -> None:
        self.traits = traits
        self.answers: list[tuple[str, Answer]] = []
        self._endpoint = endpoint
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._found: dict[str, Answer] = {}

    @property
    def greedy(self) -> bool:
        """Whether the server can be asked to answer the same each time."""
        return "temperature" not in self.traits.fixed

    async def ask(self, label: str, fields: Json, *, stream: bool = False, key: str | None = "") -> Answer:
        """The answer to `fields`, which say at least the messages. `label` names it where it is reported."""
        body: Json = {"max_tokens": self.traits.max_tokens, "temperature": 0} | fields
        for name in self.traits.fixed:
            if name not in fields:
                body.pop(name, None)
        if stream:
            body["stream"] = True
        question = json.dumps([body, key], sort_keys=True)
        async with self._asking[question]:
            if question not in self._found:
                self._found[question] = await self._endpoint.chat(body, key=key)
                self.answers.append((label, self._found[question]))
        return self._found[question]

    async def both(self, label: str, fields: Json) -> list[tuple[str, Answer]]:
        """The answer in one piece and as a stream."""
        whole, stream = await together([self.ask(label, fields), self.ask(label, fields, stream=True)])
        return [(label, whole), (f"{label}, streamed", stream)]

    async def plain(self) -> list[tuple[str, Answer]]:
        return await self.both("a question", {"messages": [user(SEA)]})

    async def limited(self) -> list[tuple[str, Answer]]:
        return await self.both("max_tokens 5", {"messages": [user(LONG)], "max_tokens": 5})

    async def streams(self) -> list[tuple[str, Answer]]:
        """Streams of all kinds."""
        return await together([self._streamed(), self._counted(), self._forced_stream()])

    async def _streamed(self) -> tuple[str, Answer]:
        return "a question", (await self.plain())[1][1]

    async def _counted(self) -> tuple[str, Answer]:
        return "include_usage", await self.counted_stream()

    async def _forced_stream(self) -> tuple[str, Answer]:
        forced = await self.tool_answer("get_weather", "required", stream=True)
        return forced.label, forced.answer

    async def counted_stream(self) -> Answer:
        fields = {"messages": [user(SEA)], "stream_options": {"include_usage": True}}
        return await self.ask("include_usage", fields, stream=True)

    async def forced(self) -> list[Asked]:
        """A call of every schema, demanded by name and as `required`, in one piece and as a stream."""
        wanted = [
            self.tool_answer(name, choice, stream=stream)
            for name in SCHEMAS
            for choice in ("named", "required")
            for stream in (False, True)
        ]
        return await together(wanted)

    async def auto(self) -> list[Asked]:
        """The same tools offered, in one piece and as a stream."""
        wanted = [self.tool_answer(name, "auto", stream=stream) for name in SCHEMAS for stream in (False, True)]
        return await together(wanted)

    async def tool_answer(self, name: str, choice: Literal["named", "required", "auto"], *, stream: bool) -> Asked:
        """The answer to a request with the tool `name` of `SCHEMAS`, and one more."""
        names = [name] if name == _SECOND else [name, _SECOND]
        fields: Json = {"messages": [user(WEATHER)], "tools": [tool(each) for each in names]}
        if choice != "auto":
            fields = self.with_calls(**fields) | {"tool_choice": named(name) if choice == "named" else choice}
        label = f"{choice} {name}"
        answer = await self.ask(label, fields, stream=stream)
        schemas = {each: SCHEMAS[each] for each in names}
        return Asked(f"{label}, streamed" if stream else label, answer, schemas, name if choice == "named" else None)

    def with_calls(self, messages: list[Json], tools: list[Json]) -> Json:
        """The fields of a request that may force calls."""
        fields: Json = {"messages": messages, "tools": tools}
        return fields | _COLD_THINKING if self.traits.thinking == "optional" else fields
