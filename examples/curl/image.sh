#!/bin/sh
# What a model that cannot see says to an image: a 400 that says where it is.
set -eu
curl -sS "${MOONSHOT_API_BASE:-http://127.0.0.1:8000/v1}/chat/completions" \
  -H "Authorization: Bearer $MOONSHOT_API_KEY" -H "Content-Type: application/json" \
  -d '{
    "model": "moonshot-v1-8k-vision-preview",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": [
      {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
      {"type": "text", "text": "What is in this picture?"}
    ]}]
  }'
