"""What every scene has at hand, and how it says that the server did wrong."""

import json
import random
from dataclasses import dataclass
from typing import Any

from benchmarks.soak.dialects import Dialect
from benchmarks.soak.prompts import Prompts
from benchmarks.soak.wire import Answer, connected, request


class Wrong(Exception):
    """The server did what it must not."""


class Administrator:
    """Calls of the admin API, each on a connection of its own."""

    def __init__(self, port: int, secret: str) -> None:
        self._port = port
        self._secret = secret

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Raises `Wrong` for any answer but 200."""
        data = b"" if body is None else json.dumps(body).encode()
        async with connected(self._port) as connection:
            answer = await connection.ask(request(f"/admin/v1/{path}", self._secret, data, method=method))
        if answer.status != 200:
            raise Wrong(f"{method} {path} was answered {answer.status}: {answer.body[:300]!r}")
        return answer.json

    async def project(self, name: str, *, money: str | None = None, **fields: Any) -> str:
        """The id of a project of a new organization, post-paid unless it is given `money`."""
        made = {"name": name, "region": "global", "postpaid": money is None, **fields}
        owner = (await self.call("POST", "organizations", made))["id"]
        if money is not None:
            await self.call("POST", f"organizations/{owner}/credits", {"amount": money})
        project = await self.call("POST", "projects", {"organization_id": owner, "name": "soak"})
        return str(project["id"])

    async def key(self, project: str, **fields: Any) -> tuple[str, str]:
        """The id and the secret of a new key."""
        made = await self.call("POST", "keys", {"name": "soak", "project_id": project, **fields})
        return made["key"]["id"], made["secret"]


@dataclass(frozen=True)
class Stage:
    """`key` has no limits; `rich` and `poor` are projects whose organizations have much money and next to none."""

    port: int
    key: str
    administrator: Administrator
    rich: str
    poor: str
    prompts: Prompts
    chance: random.Random

    async def ask(self, data: bytes) -> Answer:
        """The answer to one request, on a connection of its own."""
        async with connected(self.port) as connection:
            return await connection.ask(data)

    def chat(self, dialect: Dialect, model: str, *, key: str | None = None, last: str = "", **fields: Any) -> bytes:
        """A chat request as bytes, of which nothing is wrong."""
        fields = {"limit": 64, "stream": self.chance.random() < 0.5} | fields
        messages = self.prompts.conversation(last or self.prompts.last())
        body = dialect.body(model, messages, **fields)
        return request(dialect.path, key or self.key, body)


def expect(answer: Answer, *statuses: int) -> str:
    """The status as a scene's outcome. Raises `Wrong` for one that is none of these."""
    if answer.status not in statuses:
        raise Wrong(f"the status {answer.status} in the place of {statuses}: {answer.body[:300]!r}")
    return str(answer.status)
