"""A question about a whole document, and what is said of one that does not fit (pip install openai)."""

import os
import sys
from pathlib import Path

from openai import BadRequestError, OpenAI

client = OpenAI(
    api_key=os.environ["MOONSHOT_API_KEY"],
    base_url=os.environ.get("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1"),
)
document = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else "The moon has no air. " * 200


def ask(text: str) -> str:
    answer = client.chat.completions.create(
        model="moonshot-v1-128k",
        messages=[
            {"role": "system", "content": text},
            {"role": "user", "content": "What does the document say about the moon?"},
        ],
        max_tokens=64,
    )
    return answer.choices[0].message.content


print(ask(document))
try:
    ask("Much too long. " * 100_000)
except BadRequestError as error:
    print(error.body["message"])  # with the exact numbers of tokens; nothing is cut silently
