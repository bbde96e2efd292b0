"""A conversation gives one prompt, whatever dialect a client tells it in."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.request import ChatRequest, Conversation
from moonbase.dialects.anthropic.dialect import Anthropic
from moonbase.dialects.base import Dialect
from moonbase.dialects.openai.dialect import OpenAI
from moonbase.formats.base import Format
from moonbase.formats.hermes.format import Hermes
from moonbase.formats.kimi_k2.format import KimiK2

FORMATS: list[Format] = [KimiK2("kimi-k2-0905"), KimiK2("kimi-k2.6"), Hermes()]
TEXT = st.text(min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=2)


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A conversation told in neither dialect: texts in pieces, thoughts, calls with results, an answer begun."""
    found: list[dict[str, Any]] = []
    pieces = st.lists(TEXT, min_size=1, max_size=2)
    for number in range(draw(st.integers(1, 3))):
        asked: dict[str, Any] = {"role": "user", "texts": draw(pieces)}
        if found and found[-1].get("calls"):
            asked["results"] = [(call["id"], draw(st.lists(TEXT, max_size=2))) for call in found[-1]["calls"]]
            if draw(st.booleans()):
                asked["texts"] = []
        found.append(asked)
        calls = [
            {"id": f"get:{number}-{index}", "name": "get", "input": draw(OBJECT)}
            for index in range(draw(st.integers(0, 2)))
        ]
        thought = draw(st.none() | TEXT)
        texts = draw(st.lists(TEXT, min_size=0 if calls else 1, max_size=2))
        found.append({"role": "assistant", "texts": texts, "thought": thought, "calls": calls})
    if found[-1]["calls"] or draw(st.booleans()):
        results = [(call["id"], draw(st.lists(TEXT, max_size=2))) for call in found[-1]["calls"]]
        found.append({"role": "user", "texts": draw(pieces), "results": results})
    return found


def openai(system: list[str], tools: list[Any], conversation: list[dict[str, Any]]) -> bytes:
    messages: list[dict[str, Any]] = [{"role": "system", "content": parts(system)}] if system else []
    for turn in conversation:
        for id, texts in turn.get("results", ()):
            messages.append({"role": "tool", "tool_call_id": id, "content": parts(texts) if texts else ""})
        message: dict[str, Any] = {"role": turn["role"], "content": parts(turn["texts"])}
        if turn.get("thought") is not None:
            message["reasoning_content"] = turn["thought"]
        if turn.get("calls"):
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["input"], ensure_ascii=False)},
                }
                for call in turn["calls"]
            ]
        if turn["texts"] or turn.get("calls"):
            messages.append(message)
    if messages[-1]["role"] == "assistant":
        messages[-1]["partial"] = True
    declared = [{"type": "function", "function": tool | {"parameters": tool["schema"]}} for tool in tools]
    for tool in declared:
        del tool["function"]["schema"]
    return json.dumps({"model": "m", "messages": messages, "tools": declared}).encode()


def anthropic(system: list[str], tools: list[Any], conversation: list[dict[str, Any]]) -> bytes:
    messages: list[dict[str, Any]] = []
    for turn in conversation:
        blocks: list[dict[str, Any]] = []
        if turn.get("thought") is not None:
            blocks.append({"type": "thinking", "thinking": turn["thought"], "signature": "s"})
        blocks += [
            {"type": "tool_result", "tool_use_id": id, "content": parts(texts)} for id, texts in turn.get("results", ())
        ]
        blocks += parts(turn["texts"])
        blocks += [{"type": "tool_use", **call} for call in turn.get("calls", ())]
        messages.append({"role": turn["role"], "content": blocks})
    declared = [
        {"name": tool["name"], "description": tool["description"], "input_schema": tool["schema"]} for tool in tools
    ]
    fields = {"model": "m", "max_tokens": 5, "system": parts(system), "tools": declared, "messages": messages}
    return json.dumps(fields).encode()


def parts(texts: list[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def conversation_of(dialect: Dialect, body: bytes, *, thinking: bool) -> Conversation:
    request: ChatRequest = dialect.decode(body)
    return Conversation(
        messages=request.messages,
        tools=request.tools,
        tool_choice=request.tool_choice,
        thinking=thinking,
        keep_reasoning=thinking,
    )


@given(
    system=st.lists(TEXT, max_size=2),
    schemas=st.lists(st.fixed_dictionaries({"type": st.just("object"), "title": TEXT}), max_size=2),
    conversation=turns(),
    thinking=st.booleans(),
)
def test_both_dialects_give_the_same_prompt(
    system: list[str], schemas: list[Any], conversation: list[dict[str, Any]], thinking: bool
) -> None:
    tools = [{"name": f"t{at}", "description": "Does.", "schema": schema} for at, schema in enumerate(schemas)]
    one = conversation_of(OpenAI(), openai(system, tools, conversation), thinking=thinking)
    other = conversation_of(Anthropic(), anthropic(system, tools, conversation), thinking=thinking)

    for format in FORMATS:
        assert format.render(one) == format.render(other)
