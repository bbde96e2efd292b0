"""The two dialects as clients speak them: bodies of requests, and what answers said."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.soak.wire import Answer

Message = dict[str, str]
Schema = dict[str, Any]


class NotAnAnswer(Exception):
    """What came is not the whole, well-formed answer that it was to be."""


@dataclass(frozen=True)
class Said:
    """What an answer said. `calls` are names and arguments; `prompt` and `output` are tokens, as its usage has them."""

    text: str
    calls: tuple[tuple[str, str], ...]
    finish: str
    prompt: int
    output: int


@dataclass(frozen=True)
class Tool:
    name: str
    schema: Schema


class Dialect(Protocol):
    path: str

    def body(
        self,
        model: str,
        messages: list[Message],
        *,
        limit: int,
        stream: bool,
        system: str = "",
        tools: list[Tool] | None = None,
        must_call: bool = False,
        choices: int = 1,
    ) -> bytes:
        """A request. A dialect without several choices asks for one."""
        ...

    def said(self, answer: Answer) -> Said:
        """Of the first choice. Raises `NotAnAnswer`, also for a stream that ends in an error."""
        ...


class OpenAi:
    path = "/v1/chat/completions"

    def body(
        self,
        model: str,
        messages: list[Message],
        *,
        limit: int,
        stream: bool,
        system: str = "",
        tools: list[Tool] | None = None,
        must_call: bool = False,
        choices: int = 1,
    ) -> bytes:
        first = [{"role": "system", "content": system}] if system else []
        body: dict[str, Any] = {"model": model, "messages": first + messages, "max_tokens": limit, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        if choices > 1:
            body["n"] = choices
        if tools:
            functions = [{"name": tool.name, "parameters": tool.schema} for tool in tools]
            body["tools"] = [{"type": "function", "function": function} for function in functions]
            body["tool_choice"] = "required" if must_call else "auto"
        return json.dumps(body, ensure_ascii=False).encode()

    def said(self, answer: Answer) -> Said:
        return self._streamed(answer.body) if _is_stream(answer) else self._whole(answer.json)

    def _whole(self, body: Any) -> Said:
        choice, usage = body["choices"][0], body["usage"]
        calls = [call["function"] for call in choice["message"].get("tool_calls") or []]
        return Said(
            choice["message"]["content"] or "",
            tuple([(call["name"], call["arguments"]) for call in calls]),
            choice["finish_reason"],
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )

    def _streamed(self, body: bytes) -> Said:
        *frames, last = _frames(body)
        if last != "data: [DONE]":
            raise NotAnAnswer(f"a stream ended with {last[-200:]}")
        text, finish, usage = "", "", {"prompt_tokens": 0, "completion_tokens": 0}
        calls: dict[int, list[str]] = {}
        for frame in frames:
            chunk = json.loads(frame.removeprefix("data: "))
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                if choice["index"] == 0:
                    text += choice["delta"].get("content") or ""
                    finish = choice["finish_reason"] or finish
                    for call in choice["delta"].get("tool_calls") or ():
                        parts = calls.setdefault(call["index"], ["", ""])
                        parts[0] += call["function"].get("name") or ""
                        parts[1] += call["function"].get("arguments") or ""
        made = tuple([(name, arguments) for name, arguments in calls.values()])
        return Said(text, made, finish, usage["prompt_tokens"], usage["completion_tokens"])


class Anthropic:
    path = "/anthropic/v1/messages"

    def body(
        self,
        model: str,
        messages: list[Message],
        *,
        limit: int,
        stream: bool,
        system: str = "",
        tools: list[Tool] | None = None,
        must_call: bool = False,
        choices: int = 1,
    ) -> bytes:
        body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": limit, "stream": stream}
        if system:
            body["system"] = system
        if tools:
            body["tools"] = [{"name": tool.name, "input_schema": tool.schema} for tool in tools]
            body["tool_choice"] = {"type": "any" if must_call else "auto"}
        return json.dumps(body, ensure_ascii=False).encode()

    def said(self, answer: Answer) -> Said:
        return self._streamed(answer.body) if _is_stream(answer) else self._whole(answer.json)

    def _whole(self, body: Any) -> Said:
        blocks = body["content"]
        return Said(
            "".join([block["text"] for block in blocks if block["type"] == "text"]),
            tuple([(block["name"], json.dumps(block["input"])) for block in blocks if block["type"] == "tool_use"]),
            body["stop_reason"],
            _prompt(body["usage"]),
            body["usage"]["output_tokens"],
        )

    def _streamed(self, body: bytes) -> Said:
        frames = _frames(body)
        if not frames[-1].startswith("event: message_stop\n"):
            raise NotAnAnswer(f"a stream ended with {frames[-1][-200:]}")
        text, finish, usage = "", "", {}
        calls: list[list[str]] = []
        for frame in frames:
            event = json.loads(frame.partition("\ndata: ")[2])
            match event["type"]:
                case "message_start":
                    usage = event["message"]["usage"]
                case "content_block_start" if event["content_block"]["type"] == "tool_use":
                    calls.append([event["content_block"]["name"], ""])
                case "content_block_delta":
                    text += event["delta"].get("text", "")
                    if "partial_json" in event["delta"]:
                        calls[-1][1] += event["delta"]["partial_json"]
                case "message_delta":
                    finish = event["delta"]["stop_reason"]
                    usage = usage | event["usage"]
                case _:
                    pass
        made = tuple([(name, arguments) for name, arguments in calls])
        return Said(text, made, finish, _prompt(usage), usage["output_tokens"])


OPENAI, ANTHROPIC = OpenAi(), Anthropic()
DIALECTS: tuple[Dialect, ...] = (OPENAI, ANTHROPIC)


def _is_stream(answer: Answer) -> bool:
    return answer.headers["content-type"].startswith("text/event-stream")


def _frames(body: bytes) -> list[str]:
    if not body.endswith(b"\n\n"):
        raise NotAnAnswer(f"a stream ended with {body[-200:]!r}")
    return body[:-2].decode().split("\n\n")


def _prompt(usage: dict[str, Any]) -> int:
    return sum([usage.get(f"{kind}input_tokens") or 0 for kind in ("", "cache_read_", "cache_creation_")])
