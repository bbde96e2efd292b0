"""What a request demands of its answer: told to the format before, checked after."""

import asyncio
from collections.abc import Mapping

from moonbase.catalog.model import Model
from moonbase.catalog.rules import thinking
from moonbase.chat.constraint import JsonSchema
from moonbase.chat.events import ArgumentsDelta, ChatEvent, Finished, TextDelta, ToolCallStarted
from moonbase.chat.request import ChatRequest, Conversation, Thinking
from moonbase.config import Mode
from moonbase.errors import InvalidRequest
from moonbase.formats.schemas.book import SchemaBook
from moonbase.formats.schemas.schema import Schema

_LONG = 16 * 1024  # characters of output; to check more would hold the event loop for more than a few milliseconds


class Demand:
    """A request's tools and `response_format`, made ready.

    `adapted` names what of them is not held to, `warnings` what is wrong with the schemas (moonshot-api.md 10.3).
    """

    def __init__(self, request: ChatRequest, model: Model, mode: Mode, book: SchemaBook) -> None:
        """Raises `InvalidRequest` for what cannot be demanded."""
        self.adapted: list[str] = []
        switch = thinking(model, self._wish(request, model, mode))
        if mode == "strict":
            _refuse_with_thinking(request, model, thinks=switch.enabled)
        self.warnings: list[str] = []
        self.thinks = switch.enabled
        self._request = request
        self._schemas = {tool.name: book.parameters(tool) for tool in request.tools}
        self._answer = self._answer_schema(book)
        for name, schema in self._schemas.items():
            if (warning := schema.warning(name)) is not None:
                self.warnings.append(warning)
        left_out = {keyword for schema in self._schemas.values() for keyword in schema.left_out}
        if left_out:
            self.adapted.append(f"tools.left_out={'+'.join(sorted(left_out))}")
        self.conversation = Conversation(
            messages=request.messages,
            tools=request.tools,
            tool_choice=request.tool_choice,
            parallel_tool_calls=request.parallel_tool_calls,
            thinking=switch.enabled,
            keep_reasoning=switch.keep,
            arguments=tuple([JsonSchema(schema.text) for schema in self._schemas.values()]),
            content=JsonSchema(self._answer.text) if self._answer is not None else None,
        )

    def _wish(self, request: ChatRequest, model: Model, mode: Mode) -> Thinking | None:
        """In lenient mode a model that always thinks does so for programs of the Messages API, which knows none."""
        wish = request.thinking
        if mode == "strict" or not request.messages_api or model.thinking != "always" or wish is None or wish.enabled:
            return wish
        self.adapted.append("thinking=enabled")
        return Thinking(enabled=True)

    def _answer_schema(self, book: SchemaBook) -> Schema | None:
        """What the text must be, None for free text."""
        schema = book.answer(self._request.response_format)
        if schema is None:
            return None
        if self._request.messages[-1].partial:
            self.adapted.append("response_format=text")
            return None  # the output continues a text of the client's: alone it is no JSON
        if self._request.stop:
            self.adapted.append("response_format.validation=off")  # a stop string may end it anywhere, as asked
        if schema.left_out:
            self.adapted.append(f"response_format.left_out={'+'.join(schema.left_out)}")
        return schema

    def checks(self) -> "OutputChecks | None":
        """The checks of one answer, None when it may be anything."""
        answer = self._answer if not self._request.stop else None
        if answer is None and not self._request.tools:
            return None
        return OutputChecks(self._request, self._schemas, answer)


class OutputChecks:
    """Follows the events of one answer and says what breaks the request's demands."""

    def __init__(self, request: ChatRequest, schemas: Mapping[str, Schema], answer: Schema | None) -> None:
        self._choice = request.tool_choice
        self._parallel = request.parallel_tool_calls
        self._schemas = schemas
        self._answer = answer
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[int, list[tuple[str, list[str]]]] = {}
        self._size = 0

    async def follow(self, events: list[ChatEvent]) -> dict[int, str]:
        """The violations by choice, of those that finish in `events` for another reason than `length`.

        Each completes the sentence "The model's output is not valid: …". Long output is checked in a thread.
        """
        self._size += sum([len(event.text) for event in events if isinstance(event, TextDelta | ArgumentsDelta)])
        if self._size > _LONG and any(isinstance(event, Finished) for event in events):
            return await asyncio.to_thread(self._follow, events)
        return self._follow(events)

    def gather(self, events: list[ChatEvent]) -> None:
        """Events of which none ends a choice."""
        self._size += sum([len(event.text) for event in events if isinstance(event, TextDelta | ArgumentsDelta)])
        self._follow(events)

    def _follow(self, events: list[ChatEvent]) -> dict[int, str]:
        violations: dict[int, str] = {}
        for event in events:
            match event:
                case TextDelta(choice, text):
                    if self._answer is not None:
                        self._texts.setdefault(choice, []).append(text)
                case ToolCallStarted(choice):
                    self._calls.setdefault(choice, []).append((event.name, []))
                case ArgumentsDelta(choice, index, text):
                    self._calls[choice][index][1].append(text)
                case Finished(choice):
                    if (violation := self._of_end(event)) is not None:
                        violations[choice] = violation
                case _:
                    pass
        return violations

    def _of_end(self, end: Finished) -> str | None:
        if end.reason == "length":
            return None
        if end.broken_calls:
            return "it begins a tool call and does not say which, or with what"
        if end.reason == "tool_calls":
            return self._of_calls(self._calls[end.choice])
        return self._of_text(end.choice)

    def _of_calls(self, calls: list[tuple[str, list[str]]]) -> str | None:
        if self._choice.kind == "none":
            return "it calls a tool although tool_choice is none"
        if len(calls) > 1 and not self._parallel:
            return "it calls several tools at once although parallel_tool_calls is false"
        for name, arguments in calls:
            schema = self._schemas.get(name)
            if schema is None or self._choice.name not in (None, name):
                return f"it calls {name}, which is not among the tools that it may call"
            if (violation := schema.violation("".join(arguments))) is not None:
                return f"the arguments for {name}: {violation}"
        return None

    def _of_text(self, choice: int) -> str | None:
        if self._choice.kind in ("required", "function"):
            return "it calls no tool although tool_choice demands it"
        if self._answer is None:
            return None
        return self._answer.violation("".join(self._texts.get(choice, ())))


def _refuse_with_thinking(request: ChatRequest, model: Model, *, thinks: bool) -> None:
    """What the service refuses of models from K2.5 on that think (moonshot-api.md 1.5 and 1.7)."""
    switched = model.thinking == "optional"  # K2.5 and K2.6
    if not thinks or not (switched or model.keep_reasoning == "always"):
        return
    if switched and request.tool_choice.kind == "required":
        raise InvalidRequest("tool_choice 'required' is incompatible with thinking enabled", prefix=False)
    if switched and request.tool_choice.kind == "function":
        raise InvalidRequest("tool_choice 'specified' is incompatible with thinking enabled", prefix=False)
    field = "a thinking block" if request.messages_api else "reasoning_content"
    for message in request.messages:
        if message.tool_calls and message.reasoning is None:
            where = f"assistant tool call message at index {message.position}"
            raise InvalidRequest(f"thinking is enabled but {field} is missing in {where}", prefix=False)
