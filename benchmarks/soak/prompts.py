"""What is asked: texts, tools and schemas, new each time, and prefixes that come again."""

import random
from typing import Any

from benchmarks.soak.dialects import Message, Schema, Tool

_WORDS = (
    *("moon", "base", "crater", "ledger", "tide", "relay", "Earth", "orbit", "dust", "echo", "signal"),
    *("月球", "基地", "Mond", "Stützpunkt", "луна", "база", "🌕", "réponse"),
)
_TYPES: tuple[Schema, ...] = (
    {"type": "string"},
    {"type": "string", "enum": ["one", "two", "three"]},
    {"type": "string", "pattern": "^[a-z]{1,8}$"},
    {"type": "string", "maxLength": 12},
    {"type": "integer", "minimum": 0, "maximum": 1000},
    {"type": "number"},
    {"type": "boolean"},
)


class Prompts:
    """Texts and schemas by chance."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._prefixes = [self.text(200 * 3**number) for number in range(5)]  # some 1 KB to 100 KB

    def text(self, words: int) -> str:
        """So many words that were never said before."""
        return " ".join([*self.chance.choices(_WORDS, k=words - 1), f"{self.chance.getrandbits(64):x}."])

    def prefix(self) -> str:
        """A system prompt that others have, too; "" often."""
        return self.chance.choice(self._prefixes) if self.chance.random() < 0.3 else ""

    def conversation(self, last: str) -> list[Message]:
        """Some turns, and `last` from the user."""
        messages: list[Message] = []
        while self.chance.random() < 0.3:
            messages.append({"role": "user", "content": self.text(self.chance.randint(2, 60))})
            messages.append({"role": "assistant", "content": self.text(self.chance.randint(2, 200))})
        return [*messages, {"role": "user", "content": last}]

    def last(self) -> str:
        """What the user says: as a rule some words, now and then thousands."""
        shortest, longest = self.chance.choices([(2, 30), (30, 300), (300, 3_000)], [80, 18, 2])[0]
        return self.text(self.chance.randint(shortest, longest))

    def tools(self, most: int = 6) -> list[Tool]:
        return [self._tool() for _ in range(self.chance.randint(1, most))]

    def schema(self, properties: int = 4) -> Schema:
        """An object's."""
        made: dict[str, Any] = {self._name(): self._value() for _ in range(self.chance.randint(1, properties))}
        return {
            "type": "object",
            "properties": made,
            "required": [name for name in made if self.chance.random() < 0.7],
            "additionalProperties": False,
        }

    def _tool(self) -> Tool:
        return Tool(self._name(), self.schema())

    def _value(self) -> Schema:
        value = dict(self.chance.choice(_TYPES))
        if self.chance.random() < 0.3:
            value["description"] = self.text(10)
        if self.chance.random() < 0.2:
            return {"type": "array", "items": value, "maxItems": 4}
        return self.schema(2) if self.chance.random() < 0.1 else value

    def _name(self) -> str:
        return f"name_{self.chance.getrandbits(40):x}"
