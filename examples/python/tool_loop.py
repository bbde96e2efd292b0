"""The loop of an agent: the model calls, the program answers, until there is nothing to call (pip install openai)."""

import json
import os

from openai import OpenAI

MAX_TURNS = 5


def get_weather(city: str) -> str:
    return json.dumps({"city": city, "degrees": 22, "sky": "clear"})


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 40}},
                "required": ["city"],
            },
        },
    }
]

client = OpenAI(
    api_key=os.environ["MOONSHOT_API_KEY"],
    base_url=os.environ.get("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1"),
)
messages = [{"role": "user", "content": "What's the weather in Tokyo?"}]
for turn in range(MAX_TURNS):
    answer = client.chat.completions.create(
        model="kimi-k2-0905-preview",
        messages=messages,
        tools=TOOLS,
        tool_choice="required" if turn == 0 else "none" if turn == MAX_TURNS - 1 else "auto",
        parallel_tool_calls=False,
        max_tokens=300,
    )
    message = answer.choices[0].message
    messages.append(message)
    if answer.choices[0].finish_reason != "tool_calls":
        print(message.content or f"no answer: {answer.choices[0].finish_reason}")
        break
    for call in message.tool_calls:
        arguments = json.loads(call.function.arguments)  # always valid under the schema
        print(f"{call.id}: {call.function.name}({arguments})")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": get_weather(**arguments)})
