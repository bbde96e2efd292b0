"""An answer as it is written, and what it cost (pip install openai)."""

import os

from openai import OpenAI

client = OpenAI(
    api_key=os.environ["MOONSHOT_API_KEY"],
    base_url=os.environ.get("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1"),
)
stream = client.chat.completions.create(
    model="kimi-k2-0905-preview",
    messages=[{"role": "user", "content": "Count to five."}],
    max_tokens=64,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
    if not chunk.choices:
        print(f"\n{chunk.usage.completion_tokens} tokens")
