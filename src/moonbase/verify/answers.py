"""What came back for one request, from any server: nothing is believed, everything is kept for the checks."""

from typing import Any

from msgspec import Struct

Json = dict[str, Any]


class Call(Struct, frozen=True):
    """A tool call; a field that is missing or of the wrong kind is empty."""

    id: str
    name: str
    arguments: str


class Choice(Struct, frozen=True):
    """One choice, put together from a message or from deltas. `usage` is what stood inside the choice."""

    index: int
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    usage: Json | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """`status` is 0 when no response came. `failure` says why an answer is not whole, with the server's own words.

    `body` is the JSON of an answer that is not a stream, `chunks` that of a stream's events; `done` tells whether
    `[DONE]` ended it.
    """

    request: Json
    status: int
    failure: str | None = None
    content_type: str = ""
    body: Any = None
    chunks: tuple[Any, ...] = ()
    done: bool = False
    choices: tuple[Choice, ...] = ()
    usage: Json | None = None

    @property
    def whole(self) -> bool:
        return self.status == 200 and self.failure is None

    @property
    def first(self) -> Choice:
        """The first choice; an empty one where there is none."""
        return self.choices[0] if self.choices else Choice(0)

    @property
    def streamed(self) -> bool:
        return bool(self.request.get("stream"))

    @property
    def completion_tokens(self) -> int | None:
        """Of an answer with one choice."""
        count = ((self.usage or self.first.usage) or {}).get("completion_tokens")
        return count if isinstance(count, int) else None


def error_message(body: Any) -> str | None:
    """The sentence of an error body, wherever the server put it."""
    if not isinstance(body, dict):
        return None
    inner = body.get("error")
    if isinstance(inner, dict):
        inner = inner.get("message")
    found = inner or body.get("message") or body.get("detail")
    return found if isinstance(found, str) else None if found is None else str(found)


def whole_choices(body: Any) -> tuple[Choice, ...]:
    """The choices of a chat.completion."""
    found = []
    for position, choice in enumerate(items(mapping(body).get("choices"))):
        message = mapping(choice.get("message"))
        calls = [_call(call) for call in items(message.get("tool_calls"))]
        index = choice.get("index")
        found.append(
            Choice(
                index if isinstance(index, int) else position,
                text(message.get("content")),
                text(message.get("reasoning_content")),
                tuple(calls),
                text(choice.get("finish_reason")) or None,
                choice.get("usage") if isinstance(choice.get("usage"), dict) else None,
            )
        )
    return tuple(found)


def streamed_choices(chunks: list[Any]) -> tuple[Choice, ...]:
    """The choices of a stream's chunks, as clients fold them: first id, last name, arguments in a row."""
    found: dict[int, _Folded] = {}
    for chunk in chunks:
        for choice in items(mapping(chunk).get("choices")):
            index = choice.get("index")
            found.setdefault(index if isinstance(index, int) else 0, _Folded()).add(choice)
    return tuple([found[index].choice(index) for index in sorted(found)])


class _Folded:
    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[str]] = {}  # id, name, then the arguments' pieces
        self._finish_reason: str | None = None
        self._usage: Json | None = None

    def add(self, choice: Json) -> None:
        delta = mapping(choice.get("delta"))
        self._content.append(text(delta.get("content")))
        self._reasoning.append(text(delta.get("reasoning_content")))
        for call in items(delta.get("tool_calls")):
            index = call.get("index")
            function = mapping(call.get("function"))
            folded = self._calls.setdefault(index if isinstance(index, int) else 0, ["", ""])
            folded[0] = folded[0] or text(call.get("id"))
            folded[1] = text(function.get("name")) or folded[1]
            folded.append(text(function.get("arguments")))
        self._finish_reason = text(choice.get("finish_reason")) or self._finish_reason
        if isinstance(choice.get("usage"), dict):
            self._usage = choice["usage"]

    def choice(self, index: int) -> Choice:
        calls = [Call(id, name, "".join(pieces)) for _, (id, name, *pieces) in sorted(self._calls.items())]
        return Choice(
            index,
            "".join(self._content),
            "".join(self._reasoning),
            tuple(calls),
            self._finish_reason,
            self._usage,
        )


def _call(call: Json) -> Call:
    function = mapping(call.get("function"))
    return Call(text(call.get("id")), text(function.get("name")), text(function.get("arguments")))


def mapping(value: Any) -> Json:
    """`value` when it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Json]:
    """The objects in `value` when it is an array."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""
