"""What a model that cannot see says to an image (pip install openai)."""

import os

from openai import BadRequestError, OpenAI

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="

client = OpenAI(
    api_key=os.environ["MOONSHOT_API_KEY"],
    base_url=os.environ.get("MOONSHOT_API_BASE", "http://127.0.0.1:8000/v1"),
)
try:
    answer = client.chat.completions.create(
        model="moonshot-v1-8k-vision-preview",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                    {"type": "text", "text": "What is in this picture?"},
                ],
            }
        ],
        max_tokens=64,
    )
    print(answer.choices[0].message.content)
except BadRequestError as error:
    print(error.body["message"])
