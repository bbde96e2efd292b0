#!/bin/sh
# The Messages API: a chat. The key may come as `x-api-key` or as a bearer.
set -eu
base=${MOONSHOT_API_BASE:-http://127.0.0.1:8000/v1}
curl -sS --fail-with-body "${base%/v1}/anthropic/v1/messages" \
  -H "x-api-key: $MOONSHOT_API_KEY" -H "anthropic-version: 2023-06-01" -H "Content-Type: application/json" \
  -d '{
    "model": "kimi-k2-0905-preview",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "What is the capital of France?"}]
  }'
