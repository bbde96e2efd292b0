"""LiteLLM as a library (pip install litellm). It reads MOONSHOT_API_KEY and MOONSHOT_API_BASE by itself."""

import os

import litellm

os.environ.setdefault("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1")
question = [{"role": "user", "content": "What is the capital of France?"}]

answer = litellm.completion(model="moonshot/kimi-k2-0905-preview", messages=question, max_tokens=64)
print(answer.choices[0].message.content)

for chunk in litellm.completion(model="moonshot/kimi-k2-0905-preview", messages=question, max_tokens=64, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
