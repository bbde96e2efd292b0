"""Requests that are refused, and the exact bytes that say so (moonshot-api.md 9)."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.server import CHAT, K2, Server, chat_body, user


def refusal(message: str, kind: str = "invalid_request_error") -> bytes:
    """An error body. `message` is written as it stands in the JSON text."""
    return f'{{"error":{{"message":"{message}","type":"{kind}"}}}}'.encode()


def bad(message: str) -> bytes:
    return refusal(f"Invalid request: {message}")


def wrong(path: str, expected: str, got: str) -> bytes:
    return bad(
        f"the `{path}` field in the request (expected type {expected}) is illegal, and {got} is not acceptable",
    )


def said(*messages: str) -> bytes:
    """A chat request with these messages, written as JSON."""
    return f'{{"model":"{K2}","messages":[{",".join(messages)}]}}'.encode()


def asked(fields: str) -> bytes:
    """A good chat request with more fields, written as JSON."""
    return chat_body()[:-1] + b"," + fields.encode() + b"}"


def content(*parts: str) -> bytes:
    return said(f'{{"role":"user","content":[{",".join(parts)}]}}')


def schema(text: str) -> bytes:
    return asked(f'"response_format":{{"type":"json_schema","json_schema":{{"name":"x","schema":{text}}}}}')


def declared(*tools: str) -> bytes:
    """A good chat request with these tools, written as JSON."""
    return asked(f'"tools":[{",".join(tools)}]')


def tool(name: str, schema: str = '{"type":"object"}') -> str:
    return f'{{"type":"function","function":{{"name":"{name}","parameters":{schema}}}}}'


def chosen(choice: str) -> bytes:
    """A good chat request with the tool `look` and this choice, written as JSON."""
    return asked(f'"tools":[{tool("look")}],"tool_choice":{choice}')


def called(*ids: str) -> str:
    """An assistant message with a call of `look` for each id."""
    calls = [f'{{"id":"{id_}","type":"function","function":{{"name":"look","arguments":"{{}}"}}}}' for id_ in ids]
    return f'{{"role":"assistant","content":"","tool_calls":[{",".join(calls)}]}}'


def result(id_: str) -> str:
    return f'{{"role":"tool","tool_call_id":"{id_}","content":"5"}}'


def missing(*ids: str) -> bytes:
    return bad(
        "an assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        f"The following tool_call_ids did not have response messages: {', '.join(ids)}"
    )


def no_mfjs(finding: str) -> bytes:
    reason = "tools.function.parameters is not a valid moonshot flavored json schema"
    return bad(f"{reason}, details: \\u003c{finding}\\u003e")


BAD_NAME = bad(
    "function name is invalid, must start with a letter and can contain letters, numbers, underscores, and dashes"
)
NO_OBJECT = bad('tools.function.parameters.type is required and must be \\"object\\"')
SCHEMA = "`response_format.json_schema.schema`"
USER = '{"role":"user","content":"Hi"}'
MESSAGE_TYPES = {
    "messages": ("{}", "array", "object"),
    "messages.0": ("[1]", "dict[string,interface]", "number"),
    "messages.1": (f"[{USER},null]", "dict[string,interface]", "null"),
    "messages.0.role": ('[{"role":1}]', "string", "number"),
    "messages.0.name": ('[{"role":"user","content":"x","name":[]}]', "string", "array"),
    "messages.0.partial": ('[{"role":"user","content":"x","partial":"yes"}]', "bool", "string"),
    "messages.0.content": ('[{"role":"user","content":1.5}]', "string", "number"),
    "messages.1.content": (f'[{USER},{{"role":"user","content":{{}}}}]', "string", "object"),
    "messages.0.content.0": ('[{"role":"user","content":["x"]}]', "dict[string,interface]", "string"),
    "messages.0.content.1.text": (
        '[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":{}}]}]',
        "string",
        "object",
    ),
    "messages.0.content.0.type": ('[{"role":"user","content":[{"type":true}]}]', "string", "bool"),
    "messages.0.content.0.image_url.url": (
        '[{"role":"user","content":[{"type":"image_url","image_url":{"url":7}}]}]',
        "string",
        "number",
    ),
    "messages.0.reasoning_content": ('[{"role":"assistant","reasoning_content":{}}]', "string", "object"),
    "messages.0.tool_call_id": ('[{"role":"tool","tool_call_id":0}]', "string", "number"),
    "messages.0.tool_calls": ('[{"role":"assistant","tool_calls":{}}]', "array", "object"),
    "messages.0.tool_calls.0": ('[{"role":"assistant","tool_calls":["x"]}]', "dict[string,interface]", "string"),
    "messages.0.tool_calls.0.id": ('[{"role":"assistant","tool_calls":[{"id":0}]}]', "string", "number"),
    "messages.1.tool_calls.1.function": (
        f'[{USER},{{"role":"assistant","tool_calls":[{{}},{{"function":"x"}}]}}]',
        "dict[string,interface]",
        "string",
    ),
    "messages.0.tool_calls.0.type": ('[{"role":"assistant","tool_calls":[{"type":1}]}]', "string", "number"),
    "messages.0.tool_calls.0.function.name": (
        '[{"role":"assistant","tool_calls":[{"function":{"name":[]}}]}]',
        "string",
        "array",
    ),
    "messages.0.tool_calls.0.function.arguments": (
        '[{"role":"assistant","tool_calls":[{"function":{"arguments":5}}]}]',
        "string",
        "number",
    ),
}
FIELD_TYPES = {
    "temperature": ('"hot"', "float64", "string"),
    "top_p": ("true", "float64", "bool"),
    "presence_penalty": ("{}", "float64", "object"),
    "frequency_penalty": ("[]", "float64", "array"),
    "n": ("1.5", "int", "number"),
    "max_tokens": ('"many"', "int", "string"),
    "max_completion_tokens": ("1e3", "int", "number"),
    "stop": ("{}", "string", "object"),
    "stop.1": ('["a",1]', "string", "number"),
    "stream": ('"yes"', "bool", "string"),
    "stream_options": ("[]", "dict[string,interface]", "array"),
    "stream_options.include_usage": ('{"include_usage":1}', "bool", "number"),
    "logit_bias": ("5", "dict[string,interface]", "number"),
    "logprobs": ("1", "bool", "number"),
    "top_logprobs": ('"x"', "int", "string"),
    "tools": ("{}", "array", "object"),
    "tools.0": ("[1]", "dict[string,interface]", "number"),
    "tools.0.type": ('[{"type":1}]', "string", "number"),
    "tools.1.function": (f'[{tool("look")},{{"function":"x"}}]', "dict[string,interface]", "string"),
    "tools.0.function.name": ('[{"function":{"name":5}}]', "string", "number"),
    "tools.0.function.description": ('[{"function":{"description":["a"]}}]', "string", "array"),
    "tools.0.function.parameters": ('[{"function":{"parameters":[]}}]', "dict[string,interface]", "array"),
    "tools.0.function.strict": ('[{"function":{"strict":"yes"}}]', "bool", "string"),
    "tool_choice": ("5", "string", "number"),
    "tool_choice.type": ('{"type":true}', "string", "bool"),
    "tool_choice.function": ('{"function":"look"}', "dict[string,interface]", "string"),
    "tool_choice.function.name": ('{"function":{"name":1}}', "string", "number"),
    "parallel_tool_calls": ('"no"', "bool", "string"),
    "thinking": ("true", "dict[string,interface]", "bool"),
    "thinking.type": ('{"type":true}', "string", "bool"),
    "thinking.keep": ('{"keep":true}', "string", "bool"),
    "chat_template_kwargs": ("[]", "dict[string,interface]", "array"),
    "chat_template_kwargs.thinking": ('{"thinking":"yes"}', "bool", "string"),
    "chat_template_kwargs.enable_thinking": ('{"enable_thinking":1}', "bool", "number"),
    "chat_template_kwargs.preserve_thinking": ('{"preserve_thinking":{}}', "bool", "object"),
    "response_format": ('"json"', "dict[string,interface]", "string"),
    "response_format.type": ('{"type":1}', "string", "number"),
    "response_format.json_schema": ('{"json_schema":[]}', "dict[string,interface]", "array"),
    "response_format.json_schema.name": ('{"json_schema":{"name":{}}}', "string", "object"),
    "response_format.json_schema.schema": ('{"json_schema":{"schema":"s"}}', "dict[string,interface]", "string"),
    "response_format.json_schema.strict": ('{"json_schema":{"strict":"yes"}}', "bool", "string"),
}
NOT_JSON = "the request body is not valid JSON: "
REFUSED: dict[str, tuple[bytes, bytes]] = {
    # The body as a whole.
    "nothing": (b"", bad(NOT_JSON + "Input data was truncated")),
    "a brace": (b"{", bad(NOT_JSON + "Input data was truncated")),
    "half": (chat_body()[:-5], bad(NOT_JSON + "Input data was truncated")),
    "two values": (b"{}{}", bad(NOT_JSON + "JSON is malformed: trailing characters (byte 3)")),
    "python": (b"{'a':1}", bad(NOT_JSON + "JSON is malformed: object keys must be strings (byte 1)")),
    "NaN": (b'{"model":NaN}', bad(NOT_JSON + "JSON is malformed: invalid character (byte 9)")),
    "byte order mark": (b"\xef\xbb\xbf{}", bad(NOT_JSON + "JSON is malformed: invalid character (byte 0)")),
    "a raw control character": (
        said('{"role":"user","content":"a\0"}'),
        bad(NOT_JSON + "JSON is malformed: invalid character (byte 71)"),
    ),
    "an array": (b"[]", bad("the request body must be a JSON object, and array is not acceptable")),
    "null": (b"null", bad("the request body must be a JSON object, and null is not acceptable")),
    "a string": (b'"x"', bad("the request body must be a JSON object, and string is not acceptable")),
    "a number": (b"-1.5e3", bad("the request body must be a JSON object, and number is not acceptable")),
    "a byte that is not UTF-8": (chat_body().replace(b"Hello", b"\xff"), bad("the request body is not valid UTF-8")),
    "a cut character": (chat_body().replace(b"Hello", b"\xe4\xb8"), bad("the request body is not valid UTF-8")),
    "an encoded surrogate": (
        chat_body().replace(b"Hello", b"\xed\xa0\xbd"),
        bad("the request body is not valid UTF-8"),
    ),
    "100k open arrays": (b"[" * 100_000, bad("the request body must be a JSON object, and array is not acceptable")),
    "100k open objects": (b'{"a":' * 100_000, bad("the request body is nested too deeply")),
    "100k arrays in an unknown field": (
        asked('"x":' + "[" * 100_000 + "]" * 100_000),
        bad("the request body is nested too deeply"),
    ),
    "100k arrays in a schema": (
        schema('{"enum":[' + "[" * 100_000 + "]" * 100_000 + "]}"),
        bad("the request body is nested too deeply"),
    ),
    # Model and messages.
    "no model": (json.dumps({"messages": user("x")}).encode(), bad("model must not be empty")),
    "empty model": (chat_body(model=""), bad("model must not be empty")),
    "no messages": (json.dumps({"model": K2}).encode(), bad("messages must not be empty")),
    "null messages": (chat_body(messages=None), bad("messages must not be empty")),
    "empty messages": (chat_body(messages=[]), bad("messages must not be empty")),
    "no role": (said('{"content":"x"}'), bad("the message at position 0 has an unknown role: ")),
    "unknown role": (
        said(USER, '{"role":"robot","content":"x"}'),
        bad("the message at position 1 has an unknown role: robot"),
    ),
    **{
        f"{shape} content of {role}": (
            said(USER, f'{{"role":"{role}"{text}}}'),
            bad(f"the message at position 1 with role '{role}' must not be empty"),
        )
        for role in ("user", "assistant", "system")
        for shape, text in {
            "no": "",
            "null": ',"content":null',
            "empty": ',"content":""',
            "empty list": ',"content":[]',
        }.items()
    },
    "nothing to continue": (
        said(USER, '{"role":"assistant","content":"","partial":true}'),
        bad("the message at position 1 with role 'assistant' must not be empty"),
    ),
    "partial user": (
        said('{"role":"user","content":"x","partial":true}'),
        bad("partial is only for the last message, with role 'assistant'"),
    ),
    "partial in the middle": (
        said(USER, '{"role":"assistant","content":"x","partial":true}', USER),
        bad("partial is only for the last message, with role 'assistant'"),
    ),
    # Content parts.
    "empty text part": (content('{"type":"text","text":""}'), bad("text content is empty")),
    "text part without text": (content('{"type":"text"}'), bad("text content is empty")),
    "part without type": (content("{}"), bad("the message at position 0 has an unsupported content type: ")),
    "audio": (
        content('{"type":"input_audio","input_audio":{"data":"","format":"wav"}}'),
        bad("the message at position 0 has an unsupported content type: input_audio"),
    ),
    "file": (
        content('{"type":"file","file":{}}'),
        bad("the message at position 0 has an unsupported content type: file"),
    ),
    "image without url": (content('{"type":"image_url"}'), bad("image_url must not be empty")),
    **{
        f"{kind} at {url!r}": (
            content(f'{{"type":"{kind}_url","{kind}_url":{value}}}'),
            bad(
                f"unsupported {kind} url: it must be a data: URL with base64 content or ms://\\u003cfile_id\\u003e",
            ),
        )
        for kind in ("image", "video")
        for url in ("http://a.example/b", "https://a.example/b", "file:///etc/passwd", "b.png")
        for value in (f'{{"url":"{url}","detail":"high","id":null}}', f'"{url}"')
    },
    "an image to echo": (
        content('{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}'),
        bad("the message at position 0 has an image, which echo cannot see"),
    ),
    "a video": (
        content('{"type":"video_url","video_url":{"url":"ms://abc"}}'),
        bad("the message at position 0 has a video, which this model cannot see"),
    ),
    # Ranges.
    **{
        f"{name} {value}": (asked(f'"{name}":{value}'), refusal(f"invalid {name}: must be between {low} and {high}"))
        for name, low, high, values in (
            ("temperature", 0, 1, ("1.01", "-0.01", "2", "1e308")),
            ("top_p", 0, 1, ("1.01", "-1")),
            ("n", 1, 5, ("0", "6", "-1", "99999999999999999999999", "-9223372036854775809")),
            ("presence_penalty", -2, 2, ("2.01", "-2.01")),
            ("frequency_penalty", -2, 2, ("2.01", "-2.01")),
        )
        for value in values
    },
    **{
        f"{name} of {value}": (asked(f'"{name}":{value}'), refusal(f"invalid {name}: must be at least 1"))
        for name in ("max_tokens", "max_completion_tokens")
        for value in ("0", "-1", "-99999999999999999999999")
    },
    "a temperature out of all range": (
        asked('"temperature":1e999'),
        bad("the `temperature` field in the request is illegal: Number out of range"),
    ),
    **{
        f"{number[:6]} in {place}": (
            ask(number),
            bad(f"the `{place}` field in the request is illegal: {reason}"),
        )
        for number, reason in (
            ("1e309", "Number out of range"),
            ("-1e309", "Number out of range"),
            ("9" * 5000, "Integer value out of range"),
        )
        for place, ask in (
            (
                "tools.1.function.parameters.properties.a.anyOf.0.minimum",
                lambda number: declared(
                    tool("look"),
                    tool("f", f'{{"x":[9e9],"properties":{{"b":{{}},"a":{{"anyOf":[{{"minimum":{number}}}]}}}}}}'),
                ),
            ),
            ("response_format.json_schema.schema.maximum", lambda number: schema(f'{{"a":[1],"maximum":{number}}}')),
        )
    },
    "a number out of range before what is no JSON": (
        asked('"tools":[{"a":1e309}],'),
        bad("the `tools.0.*` field in the request is illegal: Number out of range"),
    ),
    "a number out of range under a key twice, then half a pair": (
        asked('"tools":[{"a":{"b":1e309},"a":{"\\ud800":1e309}}]'),
        bad("the `tools.0.a.?` field in the request is illegal: Number out of range"),
    ),
    **{
        f"tools in a message of {role} with {text}": (
            said('{"role":"user","content":"Hi"}', f'{{"role":"{role}","content":{text},"tools":[{tool("look")}]}}'),
            bad("the message at position 1 has tools, which must be declared for the whole request"),
        )
        for role, text in (("system", '""'), ("system", "null"), ("user", '"Hi"'), ("assistant", '"Hi"'))
    },
    "tools of a message that are no array": (
        said('{"role":"system","content":"Hi","tools":{}}'),
        wrong("messages.0.tools", "array", "object"),
    ),
    "several greedy choices": (
        asked('"n":2,"temperature":0'),
        refusal("invalid n: only 1 is allowed when temperature is under 0.01"),
    ),
    "several nearly greedy choices": (
        asked('"n":2,"temperature":0.009'),
        refusal("invalid n: only 1 is allowed when temperature is under 0.01"),
    ),
    "several choices at the default temperature of v1": (
        chat_body(model="moonshot-v1-8k", n=2),
        refusal("invalid n: only 1 is allowed when temperature is under 0.01"),
    ),
    "six stops": (
        chat_body(stop=list("abcdef")),
        bad("stop array too long. Expected an array with maximum length 5, but got 6"),
    ),
    "a stop of 33 bytes": (
        chat_body(stop="x" * 33),
        bad("stop string too long. Expected a string with maximum length 32, but got 33"),
    ),
    "a stop of 33 bytes in 11 characters": (
        chat_body(stop=["世" * 11]),
        bad("stop string too long. Expected a string with maximum length 32, but got 33"),
    ),
    # What is not there.
    "logit_bias": (asked('"logit_bias":{"1":5}'), bad("logit_bias is not supported yet")),
    "empty logit_bias": (asked('"logit_bias":{}'), bad("logit_bias is not supported yet")),
    "logprobs": (asked('"logprobs":true'), refusal("invalid logprobs: only false is allowed for this model")),
    "top_logprobs alone": (
        asked('"top_logprobs":3'),
        bad("logprobs must be set to true if top_logprobs is used"),
    ),
    "top_logprobs without logprobs": (
        asked('"top_logprobs":3,"logprobs":false'),
        bad("logprobs must be set to true if top_logprobs is used"),
    ),
    "thinking without type": (asked('"thinking":{}'), bad("unknown thinking.type: ")),
    "unknown thinking": (asked('"thinking":{"type":"maybe"}'), bad("unknown thinking.type: maybe")),
    "unknown reasoning to keep": (
        asked('"thinking":{"type":"enabled","keep":"some"}'),
        bad("unknown thinking.keep: some"),
    ),
    "a model that always thinks told not to": (
        chat_body(model="kimi-k2-thinking", thinking={"type": "disabled"}),
        refusal("invalid thinking: only type=enabled is allowed for this model"),
    ),
    "a coder told not to think": (
        chat_body(model="kimi-k2.7-code", thinking={"type": "disabled"}),
        refusal("invalid thinking: only type=enabled is allowed for this model"),
    ),
    "reasoning to keep where none is kept": (
        chat_body(model="kimi-k2.5", thinking={"type": "enabled", "keep": "all"}),
        refusal("invalid thinking: keep is not allowed for this model"),
    ),
    # What some models have fixed.
    **{
        f"{name} {value} of {model}": (
            chat_body(model=model, **{name: value}),
            refusal(f"invalid {name}: only {only} is allowed for this model"),
        )
        for model in ("kimi-k2.5", "kimi-k2.6", "kimi-k2.7-code")
        for name, value, only in (
            ("temperature", 0.6, "1"),
            ("top_p", 1, "0.95"),
            ("n", 2, "1"),
            ("presence_penalty", 0.5, "0"),
            ("frequency_penalty", -1, "0"),
        )
    },
    "the temperature of thinking without thinking": (
        chat_body(model="kimi-k2.5", temperature=1, thinking={"type": "disabled"}),
        refusal("invalid temperature: only 0.6 is allowed for this model"),
    ),
    # Tools.
    **{
        f"a tool of type {kind!r}": (
            declared(f'{{"type":"{kind}","function":{{"name":"x"}}}}'),
            bad(f"unknown tool type: {kind}, currently only function and plugin are supported"),
        )
        for kind in ("", "web_search", "plugin")
    },
    "a tool without type": (
        declared('{"function":{"name":"x"}}'),
        bad("unknown tool type: , currently only function and plugin are supported"),
    ),
    "an empty tool": (declared("{}"), bad("unknown tool type: , currently only function and plugin are supported")),
    "a builtin function": (
        declared(tool("look"), '{"type":"builtin_function","function":{"name":"$web_search"}}'),
        bad("tools.1: the builtin_function $web_search is not available on this server"),
    ),
    "a tool without function": (
        declared(tool("look"), '{"type":"function"}'),
        bad("tools.1.function is required"),
    ),
    **{
        f"a tool named {name!r}": (declared(tool(name)), BAD_NAME)
        for name in (
            *("", "9lives", "_private", "-dash", "$web_search", "get weather", "get.weather", "get:0", "天气"),
            *("caf\u00e9", "look\\n", "<|im_end|>", "functions.look", "x" * 257),
        )
    },
    "a tool without name": (declared('{"type":"function","function":{"parameters":{"type":"object"}}}'), BAD_NAME),
    "a tool twice": (
        declared(tool("look"), tool("see"), tool("look", '{"type":"object","properties":{}}')),
        bad("function name look is duplicated"),
    ),
    "129 tools": (
        declared(*[tool(f"t{number}") for number in range(129)]),
        bad("tools array too long. Expected an array with maximum length 128, but got 129"),
    ),
    **{
        f"{kind} for parameters": (declared(tool("look", schema)), NO_OBJECT)
        for kind, schema in {
            "null": "null",
            "nothing": "{}",
            "properties alone": '{"properties":{}}',
            "a string": '{"type":"string"}',
            "an array": '{"type":"array","items":{"type":"object"}}',
            "an object or null": '{"type":["object","null"]}',
            "a choice": '{"anyOf":[{"type":"object"}]}',
        }.items()
    },
    "no parameters": (declared('{"type":"function","function":{"name":"look"}}'), NO_OBJECT),
    "a parameter of no type": (
        declared(tool("look", '{"type":"object","properties":{"x":{"enum":["a"]}}}')),
        no_mfjs("At path 'properties.x': type is not defined"),
    ),
    "a parameter of an unknown type": (
        declared(tool("look", '{"type":"object","properties":{"x":{"type":"date"}}}')),
        no_mfjs("At path 'properties.x': invalid type"),
    ),
    "a parameter defined nowhere": (
        declared(tool("look", '{"type":"object","properties":{"x":{"$ref":"#/$defs/y"}}}')),
        no_mfjs("At path 'properties.x.$ref': $defs not found for reference: #/$defs/y"),
    ),
    # The choice among them.
    "required without tools": (
        asked('"tool_choice":"required"'),
        bad("tool_choice 'required' needs tools to choose from"),
    ),
    "required of no tools": (
        asked('"tool_choice":"required","tools":[]'),
        bad("tool_choice 'required' needs tools to choose from"),
    ),
    "a named tool of none": (
        asked('"tool_choice":{"type":"function","function":{"name":"x"}}'),
        bad("tool_choice.function.name: there is no function x in tools"),
    ),
    "a named tool of others": (
        chosen('{"type":"function","function":{"name":"Look"}}'),
        bad("tool_choice.function.name: there is no function Look in tools"),
    ),
    **{
        f"a choice of no name: {choice}": (
            chosen(f'{{"type":"function"{choice}}}'),
            bad("tool_choice.function.name is required"),
        )
        for choice in ("", ',"function":null', ',"function":{}', ',"function":{"name":""}')
    },
    "a choice of no type": (chosen('{"function":{"name":"look"}}'), bad("unknown tool_choice.type: ")),
    "a choice of an unknown type": (
        chosen('{"type":"custom","function":{"name":"look"}}'),
        bad("unknown tool_choice.type: custom"),
    ),
    "unknown tool_choice": (chosen('"<maybe>"'), bad("unknown tool_choice: \\u003cmaybe\\u003e")),
    "unknown tool_choice without tools": (asked('"tool_choice":"any"'), bad("unknown tool_choice: any")),
    "empty tool_choice": (asked('"tool_choice":""'), bad("unknown tool_choice: ")),
    # Calls and their results.
    "a result without id": (said(USER, '{"role":"tool","content":"5"}'), bad("tool_call_id  is not found")),
    "a result with an empty id": (said(USER, called("look:0"), result("")), bad("tool_call_id  is not found")),
    "a result of no call": (said(USER, result("look:0")), bad("tool_call_id look:0 is not found")),
    "a result of another call": (
        said(USER, called("look:0"), result("look:1")),
        bad("tool_call_id look:1 is not found"),
    ),
    "a result twice": (
        said(USER, called("look:0"), result("look:0"), result("look:0")),
        bad("tool_call_id look:0 is not found"),
    ),
    "a result too late": (
        said(USER, called("look:0"), result("look:0"), USER, result("look:0")),
        bad("tool_call_id look:0 is not found"),
    ),
    "no result at the end": (said(USER, called("look:0")), missing("look:0")),
    "no result before the user": (said(USER, called("look:0"), USER, result("look:0")), missing("look:0")),
    "no result before the next calls": (
        said(USER, called("look:0"), called("look:1"), result("look:1")),
        missing("look:0"),
    ),
    "two results of three": (
        said(USER, called("c_a", "c_b", "c_c"), result("c_b"), USER),
        missing("c_a", "c_c"),
    ),
    "a call id twice": (
        said(USER, called("look:0", "look:0"), result("look:0")),
        bad("tool_call_id look:0 is duplicated"),
    ),
    "a call with an empty id": (
        said(USER, called("look:0", "")),
        bad("the message at position 1 has no `tool_calls.1.id`"),
    ),
    "a call without id": (
        said(USER, '{"role":"assistant","tool_calls":[{"function":{"name":"look","arguments":"{}"}}]}'),
        bad("the message at position 1 has no `tool_calls.0.id`"),
    ),
    "a call without function": (
        said(USER, '{"role":"assistant","tool_calls":[{"id":"look:0"}]}'),
        bad("the message at position 1 has no `tool_calls.0.function.name`"),
    ),
    "a call without name": (
        said(USER, '{"role":"assistant","tool_calls":[{"id":"look:0","function":{"arguments":"{}"}}]}'),
        bad("the message at position 1 has no `tool_calls.0.function.name`"),
    ),
    **{
        f"a call by {role}": (
            said(USER, called("look:0").replace("assistant", role)),
            bad(f"the message at position 1 has tool_calls, but role '{role}'"),
        )
        for role in ("user", "system", "tool")
    },
    # response_format.
    "format without type": (asked('"response_format":{}'), bad("unknown response_format.type: ")),
    "unknown format": (asked('"response_format":{"type":"xml"}'), bad("unknown response_format.type: xml")),
    "json_schema without anything": (
        asked('"response_format":{"type":"json_schema"}'),
        bad("response_format.json_schema is required when type is json_schema"),
    ),
    "json_schema without name": (
        asked('"response_format":{"type":"json_schema","json_schema":{"schema":{}}}'),
        bad("response_format.json_schema.name is required"),
    ),
    "json_schema without schema": (
        asked('"response_format":{"type":"json_schema","json_schema":{"name":"x"}}'),
        bad("response_format.json_schema.schema is required"),
    ),
    "a reference elsewhere": (
        schema('{"$ref":"http://a.example/b"}'),
        bad(f"{SCHEMA}: At path '$ref': references must start with #/$defs/"),
    ),
    "a reference to a file": (
        schema('{"items":{"$ref":"file:///etc/passwd"}}'),
        bad(f"{SCHEMA}: At path 'items.$ref': references must start with #/$defs/"),
    ),
    "a reference to nothing": (
        schema('{"$ref":"#/$defs/a"}'),
        bad(f"{SCHEMA}: At path '$ref': $defs not found for reference: #/$defs/a"),
    ),
    "a schema too deep": (
        schema('{"items":' * 40 + "{}" + "}" * 40),
        bad(f"{SCHEMA}: At path '{'.'.join(['items'] * 31)}': schema depth exceeds maximum limit of 30"),
    ),
    "a schema too large": (
        schema('{"description":"' + "x" * 120_000 + '"}'),
        bad(f"{SCHEMA}: At path 'root': schema exceeds maximum allowed size"),
    ),
}


def check(server: Server, body: bytes, expected: bytes, status: int = 400) -> None:
    """The refusal of a request and, where the body is an object to which that can be added, of one for a stream."""
    streams = [body[:-1] + b',"stream":true}'] if body.endswith(b"}") and not body.endswith(b"{}") else []
    for sent in (body, *streams):
        reply = server.post(sent)
        assert (reply.status, reply.body) == (status, expected)
        assert reply.header("content-type") == "application/json; charset=utf-8"


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_gets_exactly_this_error(echo: Server, case: str) -> None:
    check(echo, *REFUSED[case])


LONG = "x" * 3_000_000


@pytest.mark.parametrize(
    ("body", "start"),
    [
        pytest.param(said(USER, result(LONG)), "Invalid request: tool_call_id xxx", id="an unknown call"),
        pytest.param(
            said(USER, called(LONG, LONG), result(LONG)), "Invalid request: tool_call_id xxx", id="a call twice"
        ),
        pytest.param(
            said(USER, called(*[f"{n:0300}" for n in range(1000)])),
            "Invalid request: an assistant message with 'tool_calls' must be followed by",
            id="a thousand calls without a result",
        ),
        pytest.param(chosen(f'"{LONG}"'), "", id="a tool_choice"),
        pytest.param(declared(f'{{"type":"{LONG}"}}'), "Invalid request: unknown tool type: xxx", id="a tool type"),
        pytest.param(chat_body(model=LONG), "Not found the model xxx", id="a model"),
        pytest.param(chat_body(messages=[{"role": LONG, "content": ""}]), "", id="a role"),
        pytest.param(
            asked(f'"thinking":{{"type":"{LONG}"}}'), "Invalid request: unknown thinking.type: xxx", id="thinking"
        ),
        pytest.param(asked(f'"response_format":{{"type":"{LONG}"}}'), "", id="a response_format"),
        pytest.param(declared(tool(LONG)), "", id="a tool name"),
        pytest.param(
            declared(tool("x", f'{{"type":"object","properties":{{"a":{{"$ref":"{LONG[:100_000]}"}}}}}}')),
            "",
            id="a $ref",
        ),
    ],
)
def test_what_a_refusal_quotes_is_cut(echo: Server, body: bytes, start: str) -> None:
    for sent in (body, body[:-1] + b',"stream":true}'):
        reply = echo.post(sent)
        error = reply.json["error"]
        assert reply.status in (400, 404)
        assert error["message"].startswith(start)
        assert len(error["message"]) <= 2_000
        if len(error["message"]) > 1_000:
            assert error["message"].endswith("…")
            assert len(error["message"]) == 2_000


def test_a_refusal_as_long_as_may_be_is_whole(echo: Server) -> None:
    fits = 2_000 - len("Invalid request: unknown thinking.type: ")
    for length, shown in ((fits, "x" * fits), (fits + 1, "x" * (fits - 1) + "…")):
        reply = echo.post(asked(f'"thinking":{{"type":"{"x" * length}"}}'))
        assert (reply.status, reply.body) == (400, bad(f"unknown thinking.type: {shown}"))


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_error_quotes_of_the_model_is_cut(start_server: StartServer, tmp_path: Path, stream: bool) -> None:
    script = tmp_path / "script.txt"
    call = f"<|tool_call_begin|>functions.{LONG[:20_000]}:0<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
    script.write_text(f"<|tool_calls_section_begin|>{call}<|tool_calls_section_end|>")
    server = start_server("--set", f"echo.script={script}")
    more = f',"max_tokens":50000,"stream":{json.dumps(stream)}}}'
    reply = server.post(declared(tool("look"))[:-1] + more.encode())
    message = ("The model's output is not valid: it calls " + LONG)[:1_999] + "…"
    assert (reply.status, reply.json) == (500, {"error": {"message": message, "type": "unexpected_output"}})


@pytest.mark.parametrize("path", MESSAGE_TYPES)
def test_a_wrong_type_in_messages_names_its_place(echo: Server, path: str) -> None:
    text, expected, got = MESSAGE_TYPES[path]
    check(echo, f'{{"model":"{K2}","messages":{text}}}'.encode(), wrong(path, expected, got))


@pytest.mark.parametrize("path", FIELD_TYPES)
def test_a_wrong_type_of_a_field_names_it(echo: Server, path: str) -> None:
    value, expected, got = FIELD_TYPES[path]
    check(echo, asked(f'"{path.split(".")[0]}":{value}'), wrong(path, expected, got))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"type":"strange"}', id="unknown type"),
        pytest.param('{"type":5}', id="type is a number"),
        pytest.param('{"type":"string","minLength":-1}', id="negative bound"),
        pytest.param('{"type":"string","maxLength":"x"}', id="bound is a string"),
        pytest.param('{"enum":"a"}', id="enum is a string"),
        pytest.param('{"required":[1]}', id="required holds a number"),
        pytest.param('{"properties":[]}', id="properties is an array"),
        pytest.param('{"properties":{"a":5}}', id="property is a number"),
        pytest.param('{"anyOf":{}}', id="anyOf is an object"),
        pytest.param('{"anyOf":[]}', id="anyOf is empty"),
        pytest.param('{"pattern":5}', id="pattern is a number"),
        pytest.param('{"minItems":1000000000}', id="more items than any answer holds"),
        pytest.param('{"$ref":5}', id="$ref is a number"),
        pytest.param('{"$defs":5,"$ref":"#/$defs/a"}', id="$defs is a number"),
        pytest.param('{"$defs":["a"],"$ref":"#/$defs/a"}', id="$defs is an array"),
        pytest.param('{"$defs":"a","$ref":"#/$defs/a"}', id="$defs is a string"),
        pytest.param('{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}', id="endless reference"),
        pytest.param('{"$ref":"#"}', id="endless reference to the root"),
    ],
)
def test_an_impossible_schema_is_refused_by_its_field(echo: Server, text: str) -> None:
    reply = echo.post(schema(text))
    assert reply.status == 400, reply.body
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert reply.json["error"]["message"].startswith(f"Invalid request: {SCHEMA}")


REFUSED_BY_THINKING = {
    "required": (
        {"tool_choice": "required"},
        "tool_choice 'required' is incompatible with thinking enabled",
    ),
    "specified": (
        {"tool_choice": {"type": "function", "function": {"name": "look"}}},
        "tool_choice 'specified' is incompatible with thinking enabled",
    ),
    "no reasoning": (
        {"messages": [*user("Hi"), json.loads(called("look:0")), json.loads(result("look:0"))]},
        "thinking is enabled but reasoning_content is missing in assistant tool call message at index 1",
    ),
}


@pytest.fixture(scope="module")
def strict(start_module_server: StartServer) -> Server:
    return start_module_server("--set", "mode=strict")


@pytest.mark.parametrize("model", ["kimi-k2.5", "kimi-k2.6"])
@pytest.mark.parametrize("case", REFUSED_BY_THINKING)
def test_what_the_service_refuses_while_a_model_thinks_is_refused_in_strict_mode_only(
    echo: Server, strict: Server, model: str, case: str
) -> None:
    """`echo` calls no tools, so that what is not refused ends in a text: for `tool_choice` not what was demanded."""
    fields, message = REFUSED_BY_THINKING[case]
    asked = {"model": model, "tools": [json.loads(tool("look"))], **fields}
    check(strict, chat_body(**asked), refusal(message))
    unrefused = 500 if "tool_choice" in fields else 200
    assert strict.post(chat_body(**asked, thinking={"type": "disabled"})).status == unrefused
    assert echo.post(chat_body(**asked)).status == unrefused


@pytest.mark.parametrize(
    ("text", "left_out", "warning"),
    [
        pytest.param('{"type":"string","pattern":"("}', "pattern", None, id="broken pattern"),
        pytest.param('{"type":"string","pattern":"(?=a)b"}', "pattern", None, id="look-ahead"),
        pytest.param('{"oneOf":[],"format":"date"}', "format+oneOf", "format, oneOf", id="unsupported keywords"),
    ],
)
def test_a_rule_that_is_not_enforced_is_left_out_and_named(
    echo: Server, text: str, left_out: str, warning: str | None
) -> None:
    """As moonshot-api.md 10.3 recommends; where the service warns of a tool's schema there is its header too."""
    answered = echo.post(schema(text).replace(b"Hello", rb"\"any text\""))
    assert (answered.status, answered.json["choices"][0]["message"]["content"]) == (200, '"any text"')
    assert answered.header("moonbase-adapted") == f"response_format.left_out={left_out}"

    called = echo.post(declared(tool("look", f'{{"type":"object","properties":{{"x":{text}}}}}')))
    assert (called.status, called.json["choices"][0]["message"]["content"]) == (200, "Hello")
    assert called.header("moonbase-adapted") == f"tools.left_out={left_out}"
    assert called.header("msh-schema-warning") == (
        warning
        and "tools.function[look].parameters is not a valid moonshot flavored json schema, "
        f"details: <At path 'properties.x': unsupported keywords: {warning}>"
    )


@pytest.mark.parametrize(
    ("body", "content"),
    [
        pytest.param(said(r'{"role":"user","content":"a\u0000b"}'), "a\0b", id="escaped null"),
        pytest.param(said(r'{"role":"user","content":"a\ud83d b"}'), "a\ufffd b", id="lone high surrogate"),
        pytest.param(said(r'{"role":"user","content":"a\uDC00 b"}'), "a\ufffd b", id="lone low surrogate"),
        pytest.param(said(r'{"role":"user","content":"\ud83d\ud83d\ude00"}'), "\ufffd😀", id="high before a pair"),
        pytest.param(said(r'{"role":"user","content":"\ude00\ud83d"}'), "\ufffd\ufffd", id="swapped pair"),
        pytest.param(said(r'{"role":"user","content":"\\ud83d \ud83d"}'), r"\ud83d" + " \ufffd", id="escaped escape"),
        pytest.param(said(r'{"role":"user","content":[{"type":"text","text":"\udfff"}]}'), "\ufffd", id="in a part"),
        pytest.param(said(r'{"role":"user","content":"\ud83d\ude00"}'), "😀", id="whole pair"),
        pytest.param(said('{"role":"user","content":"\ufffe\U0010ffff\u2028"}'), "\ufffe\U0010ffff\u2028", id="rare"),
        pytest.param(asked('"x":' + "[" * 200 + "]" * 200), "Hello", id="200 arrays"),
        pytest.param(asked('"x":' + "9" * 100_000), "Hello", id="100k digits"),
        pytest.param(asked('"x":1e999'), "Hello", id="huge exponent in an unknown field"),
        pytest.param(asked('"max_tokens":99999999999999999999999999'), "Hello", id="huge limit"),
        pytest.param(asked('"model":"' + K2 + '"'), "Hello", id="a key twice"),
    ],
)
def test_odd_but_meaningful_requests_are_answered(echo: Server, body: bytes, content: str) -> None:
    reply = echo.post(body)
    assert reply.status == 200, reply.body
    assert reply.json["choices"][0]["message"]["content"] == content


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("gpt-4o", "gpt-4o"),
        ("<a&b>", r"\u003ca\u0026b\u003e"),
        ('a"b\\c\n', r"a\"b\\c\n"),
        ("世界", "世界"),
        ("kimi-k2-0905-preview ", "kimi-k2-0905-preview "),
        ("KIMI-K2-0905-PREVIEW", "KIMI-K2-0905-PREVIEW"),
        ("kimi-latest-8k", "kimi-latest-8k"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("x" * 1_959, "x" * 1_959),
    ],
)
def test_an_unknown_model_is_named_with_html_escaped(echo: Server, model: str, shown: str) -> None:
    message = f"Not found the model {shown} or Permission denied"
    check(echo, chat_body(model=model), refusal(message, "resource_not_found_error"), 404)


@pytest.mark.parametrize("path", [CHAT, "/v1/tokenizers/estimate-token-count"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic c2s6", "sk-naked", "Bearer two words", "Bearer\tsk-tab", "Token sk-x"],
)
def test_no_or_an_ill_formed_credential_is_told_so(echo: Server, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = echo.post(b"{", path, key=None, headers=headers)
    assert (reply.status, reply.body) == (401, refusal("Incorrect API key provided", "incorrect_api_key_error"))


@pytest.mark.parametrize(
    "key", ["sk-wrong", "sk-" + "a" * 48, "ak-0123456789abcdefghij", "é", "x" * 10_000, "..", "\\"]
)
def test_an_unknown_key_is_told_so_before_anything_else(echo: Server, key: str) -> None:
    reply = echo.post(b"{", key=key)
    assert (reply.status, reply.body) == (401, refusal("Invalid Authentication", "invalid_authentication_error"))


def test_the_scheme_is_read_as_http_has_it(echo: Server) -> None:
    for authorization in (f"bearer {echo.key}", f"BEARER  {echo.key}"):
        assert echo.get("/v1/models", key=None, headers={"Authorization": authorization}).status == 200


@pytest.mark.parametrize(
    ("method", "path", "agent"),
    [
        ("POST", "/v1/embeddings", "curl/8.0"),
        ("GET", "/v1/nothing", ""),
        ("GET", CHAT, "curl/8.0"),
        ("DELETE", "/v1/models", ""),
        ("PUT", CHAT, ""),
        ("PATCH", "/v1/users/me/balance", ""),
        ("GET", "/", ""),
        ("GET", "/v1/models/", ""),
        ("GET", "//v1/models", ""),
        ("GET", "/v1/../etc/passwd", ""),
        ("GET", "/v1/chat", ""),
        ("GET", "/docs", ""),
        ("POST", "/anthropic/v1/unknown", ""),
        ("POST", "/v1/xyz", 'a "quoted" agent'),
        ("POST", "/v1/xyz", "café"),
    ],
)
@pytest.mark.parametrize("key", [None, "sk-wrong"])
def test_an_unknown_path_echoes_the_request(echo: Server, method: str, path: str, agent: str, key: str | None) -> None:
    reply = echo.request(method, path, key=key, headers={"User-Agent": agent.encode().decode("latin-1")})
    body = (
        f'{{"code":5,"error":"url.not_found","message":"没找到对象","method":"{method}","scode":"0x5","status":false,'
        f'"ua":{json.dumps(agent, ensure_ascii=False)},"url":"{path}"}}'
    )
    assert (reply.status, reply.body.decode()) == (404, body)


def test_the_query_is_no_part_of_the_echoed_path(echo: Server) -> None:
    assert echo.get("/v1/xyz?key=secret").json["url"] == "/v1/xyz"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", bad(NOT_JSON + "Input data was truncated")),
        (b'{"model":1}', wrong("model", "string", "number")),
        (chat_body(messages=[]), bad("messages must not be empty")),
        (chat_body(messages=[{"role": "user"}]), bad("the message at position 0 with role 'user' must not be empty")),
    ],
)
def test_estimates_are_refused_in_the_same_words(echo: Server, body: bytes, message: bytes) -> None:
    reply = echo.post(body, "/v1/tokenizers/estimate-token-count")
    assert (reply.status, reply.body) == (400, message)


def test_no_refusal_was_an_accident(echo: Server) -> None:
    """The last test of this module: nothing above wrote a stack to the log, and the server still answers."""
    assert echo.accidents == []
    answer: Any = echo.chat("Still there?").json
    assert answer["choices"][0]["message"]["content"] == "Still there?"
