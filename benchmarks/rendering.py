"""What does a long conversation with many tools cost before it reaches an engine?

Renders and encodes 200 messages with 128 tools in the Kimi formats, with cold and with warm caches, and
prints the CPU time of each. Needs the real vocabulary:

    python benchmarks/rendering.py path/to/tiktoken.model
"""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

from moonbase.chat.constraint import JsonSchema
from moonbase.chat.request import Conversation, Message, TextPart, Tool, ToolCall
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.router.encoding import PromptEncoder

ROUNDS = 41
TOOLS = 128
TURNS = 50  # of four messages each


def conversation() -> Conversation:
    properties = {f"p{number}": {"type": "string", "description": "What it is for. " * 4} for number in range(6)}
    schema = json.dumps({"type": "object", "properties": properties, "required": ["p0"]})
    tools = tuple([tool(f"tool_{number}", schema) for number in range(TOOLS)])
    messages: list[Message] = []
    for turn in range(TURNS):
        call = ToolCall(f"tool_3:{turn}", "tool_3", json.dumps({"p0": "some value " * 4}))
        messages += [
            Message(role="user", content=(TextPart(f"Question {turn}: " + "word " * 60),)),
            Message(role="assistant", reasoning="Let me think. " * 10, tool_calls=(call,)),
            Message(role="tool", tool_call_id=call.id, content=(TextPart(f"Result {turn}: " + "data " * 80),)),
            Message(role="assistant", content=(TextPart(f"Answer {turn}: " + "text " * 70),)),
        ]
    arguments = tuple([JsonSchema(tool.parameters) for tool in tools])
    return Conversation(messages=tuple(messages), tools=tools, arguments=arguments, thinking=True)


def tool(name: str, schema: str) -> Tool:
    declaration = {"name": name, "description": "What the tool does. " * 5, "parameters": json.loads(schema)}
    return Tool(name=name, declaration=json.dumps({"type": "function", "function": declaration}), parameters=schema)


async def measure(revision: str, tokenizer: KimiTokenizer, asked: Conversation) -> str:
    """One line of the table; times in milliseconds of this thread's CPU."""
    format, encoder = KimiK2(revision), PromptEncoder(tokenizer)
    rendering, encoding = [], []
    for _ in range(ROUNDS):
        start = time.thread_time()
        prompt = format.render(asked)
        rendered = time.thread_time()
        ids = await encoder.encode(prompt, "org")
        rendering.append((rendered - start) * 1e3)
        encoding.append((time.thread_time() - rendered) * 1e3)
    warm = statistics.median(rendering[1:]) + statistics.median(encoding[1:])
    return f"{revision:18} {len(ids):7} {rendering[0]:12.1f} {statistics.median(rendering[1:]):12.2f} {warm:18.2f}"


def main() -> None:
    tokenizer, asked = KimiTokenizer(Path(sys.argv[1])), conversation()
    print(f"{'format':18} {'tokens':>7} {'cold render':>12} {'warm render':>12} {'render and encode':>18}  (ms)")
    for revision in ("kimi-k2-0905", "kimi-k2-thinking", "kimi-k2.5", "kimi-k2.6"):
        print(asyncio.run(measure(revision, tokenizer, asked)))


if __name__ == "__main__":
    main()
