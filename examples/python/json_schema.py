"""An answer that fits a schema, whatever the model (pip install openai)."""

import json
import os

from openai import OpenAI

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "country": {"type": "string", "enum": ["France", "Japan", "Peru"]},
        "population": {"type": "integer", "minimum": 0, "maximum": 50_000_000},
    },
    "required": ["name", "country", "population"],
}

client = OpenAI(
    api_key=os.environ["MOONSHOT_API_KEY"],
    base_url=os.environ.get("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1"),
)
answer = client.chat.completions.create(
    model="kimi-k2-0905-preview",
    messages=[{"role": "user", "content": "Describe Tokyo."}],
    response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
    max_tokens=200,
)
city = json.loads(answer.choices[0].message.content)
print(city["name"], city["country"], city["population"])
