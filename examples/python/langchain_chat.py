"""LangChain: a chat, a stream and a tool (pip install langchain-openai)."""

import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"22 degrees in {city}"


model = ChatOpenAI(
    model="kimi-k2-0905-preview",
    api_key=os.environ["MOONSHOT_API_KEY"],
    base_url=os.environ.get("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1"),
    temperature=0.6,
    max_tokens=200,
)
print(model.invoke("What is the capital of France?").content)
for chunk in model.stream("Count to five."):
    print(chunk.content, end="", flush=True)
print()
answer = model.bind_tools([get_weather], tool_choice="required").invoke("What's the weather in Tokyo?")
for call in answer.tool_calls:
    print(call["name"], call["args"])
