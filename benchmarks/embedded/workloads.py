"""What is asked: stories, by streams that run at once; and the turns of agents, with their histories."""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Literal

from msgspec import Struct

from benchmarks.chat_server import ChatServer
from benchmarks.embedded.client import Answer, Client, Message, client_of
from benchmarks.embedded.texts import instructions, result, story, task

STORY_TOKENS = 96
AGENTS = 4
TURNS = 5
TURN_TOKENS = 40
_SETTLE = 0.5  # seconds after the last answer in which what it costs still counts

History = Literal["kept", "fresh"]
"""Whether a turn's prompt goes on from the last one's, or begins with a line that was never there before."""


class Run(Struct, frozen=True, kw_only=True):
    """One server, asked once; round 0 warms up.

    `history` is None for stories. Counts of tokens are sums over all answers, of which `whole` went to their limit.
    `seconds` are from the first request to the last answer, `cpu` is what the server's processes took, and `latency`
    the mean of the answers' times.
    """

    server: str
    round: int
    streams: int
    history: History | None
    answers: int
    whole: int
    prompt: int
    cached: int
    tokens: int
    seconds: float
    cpu: float
    latency: float


async def stories(server: ChatServer, streams: int, round_number: int) -> Run:
    """As many streams as are asked for, each with a prompt of its own that is new to the server."""

    async def tell(client: Client, number: int) -> list[Answer]:
        return [await client.chat(story(round_number, streams, number), STORY_TOKENS)]

    async with client_of(server) as client:
        work = [tell(client, number) for number in range(streams)]
        return await _measured(server, round_number, None, work)


async def agents(server: ChatServer, history: History, round_number: int) -> Run:
    """Agents that run the same program at once, each with a task of its own."""
    numbers = count(1)

    def session() -> str:
        number = next(numbers) if history == "fresh" else 0
        return f"Session {round_number:04}{number:04}."

    async with client_of(server) as client:
        work = [_turns(client, number, round_number, session) for number in range(AGENTS)]
        return await _measured(server, round_number, history, work)


async def _turns(client: Client, agent: int, round_number: int, session: Callable[[], str]) -> list[Answer]:
    answers: list[Answer] = []
    history: list[Message] = [task(agent)]
    for turn in range(TURNS):
        answer = await client.chat([instructions(session()), *history], TURN_TOKENS)
        answers.append(answer)
        history += [Message("assistant", answer.text), result(agent, turn, round_number)]
    return answers


async def _measured(
    server: ChatServer,
    round_number: int,
    history: History | None,
    work: list[Coroutine[Any, Any, list[Answer]]],
) -> Run:
    cpu, began = server.cpu_seconds(), time.monotonic()
    answers = [answer for each in await asyncio.gather(*work) for answer in each]
    seconds = time.monotonic() - began
    await asyncio.sleep(_SETTLE)
    return Run(
        server=server.name,
        round=round_number,
        streams=len(work),
        history=history,
        answers=len(answers),
        whole=sum(answer.whole for answer in answers),
        prompt=sum(answer.prompt for answer in answers),
        cached=sum(answer.cached for answer in answers),
        tokens=sum(answer.tokens for answer in answers),
        seconds=seconds,
        cpu=server.cpu_seconds() - cpu,
        latency=statistics.fmean(answer.seconds for answer in answers),
    )
