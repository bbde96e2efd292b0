"""The Messages API: a chat, a stream and a tool (pip install anthropic)."""

import os

from anthropic import Anthropic

client = Anthropic(
    api_key=os.environ["MOONSHOT_API_KEY"],
    base_url=os.environ.get("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1").removesuffix("/v1") + "/anthropic",
)
ask = {
    "model": "kimi-k2-0905-preview",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "What's the weather in Tokyo?"}],
}
print(client.messages.count_tokens(model=ask["model"], messages=ask["messages"]).input_tokens, "tokens to read")

message = client.messages.create(**ask)
print(message.content[0].text)

with client.messages.stream(**ask) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()

weather = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}},
        "required": ["city"],
    },
}
message = client.messages.create(**ask, tools=[weather], tool_choice={"type": "tool", "name": "get_weather"})
for block in message.content:
    if block.type == "tool_use":
        print(block.id, block.name, block.input)
