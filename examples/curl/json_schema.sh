#!/bin/sh
# An answer that fits a schema, whatever the model.
set -eu
curl -sS --fail-with-body "${MOONSHOT_API_BASE:-http://127.0.0.1:8000/v1}/chat/completions" \
  -H "Authorization: Bearer $MOONSHOT_API_KEY" -H "Content-Type: application/json" \
  -d '{
    "model": "kimi-k2-0905-preview",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "Describe Tokyo."}],
    "response_format": {
      "type": "json_schema",
      "json_schema": {
        "name": "city",
        "schema": {
          "type": "object",
          "properties": {"country": {"type": "string", "enum": ["France", "Japan", "Peru"]}},
          "required": ["country"]
        }
      }
    }
  }'
