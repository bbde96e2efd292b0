#!/bin/sh
# An answer as it is written: one `data:` line a piece, then `data: [DONE]`.
set -eu
curl -sSN --fail-with-body "${MOONSHOT_API_BASE:-http://127.0.0.1:8000/v1}/chat/completions" \
  -H "Authorization: Bearer $MOONSHOT_API_KEY" -H "Content-Type: application/json" \
  -d '{
    "model": "kimi-k2-0905-preview",
    "max_tokens": 64,
    "stream": true,
    "messages": [{"role": "user", "content": "Count to five."}]
  }'
