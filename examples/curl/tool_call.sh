#!/bin/sh
# A call of a tool: `finish_reason` is `tool_calls`, the arguments are JSON that fits the schema.
set -eu
curl -sS --fail-with-body "${MOONSHOT_API_BASE:-http://127.0.0.1:8000/v1}/chat/completions" \
  -H "Authorization: Bearer $MOONSHOT_API_KEY" -H "Content-Type: application/json" \
  -d '{
    "model": "kimi-k2-0905-preview",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "What is the weather in Tokyo?"}],
    "parallel_tool_calls": false,
    "tool_choice": "required",
    "tools": [{
      "type": "function",
      "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
          "type": "object",
          "properties": {"city": {"type": "string", "maxLength": 40}},
          "required": ["city"]
        }
      }
    }]
  }'
