"""A question and its answer (pip install openai)."""

import os

from openai import OpenAI

client = OpenAI(
    api_key=os.environ["MOONSHOT_API_KEY"],
    base_url=os.environ.get("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1"),
)
answer = client.chat.completions.create(
    model="kimi-k2-0905-preview",
    messages=[
        {"role": "system", "content": "You are Kimi. Answer in one sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    temperature=0.6,
    max_tokens=64,
)
print(answer.choices[0].message.content)
print(answer.usage.total_tokens, "tokens")
