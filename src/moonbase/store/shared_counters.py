"""Counters in Redis, which several processes share: one script that takes all of a request or nothing."""

import hashlib
import sys
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from moonbase.errors import ConfigurationError, CountersAway

T = TypeVar("T")

_PROBE_MS = 1_000

# ARGV[1] is msgpack of {now, lease, takes}. A take is {member, forced, counters}, a counter {index of its key, amount,
# limit, ttl}; a ttl of 0 is that of a set of open requests, which are members with the time at which they are dropped.
# The answer is msgpack of {position of the limit that is exceeded or 0, counts} for each take. The clock is the
# caller's: windows are in the names of the keys.
_SCRIPT = b"""
local now, lease, takes = unpack(cmsgpack.unpack(ARGV[1]))

local function count(key, ttl)
  if ttl > 0 then return tonumber(redis.call('GET', key) or 0) end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  return redis.call('ZCARD', key)
end

local function add(key, amount, ttl, member)
  if ttl == 0 then
    redis.call('ZADD', key, now + lease, member)
    redis.call('PEXPIRE', key, lease)
  elseif redis.call('INCRBY', key, amount) == amount then
    redis.call('PEXPIRE', key, ttl)
  end
end

local answers = {}
for i, take in ipairs(takes) do
  local member, forced, counters = unpack(take)
  local exceeded, counts = 0, {}
  for j, counter in ipairs(counters) do
    local key, amount, limit, ttl = KEYS[counter[1]], counter[2], counter[3], counter[4]
    counts[j] = count(key, ttl)
    if exceeded == 0 and not forced and counts[j] + amount > limit then exceeded = j end
  end
  if exceeded == 0 then
    for j, counter in ipairs(counters) do
      add(KEYS[counter[1]], counter[2], counter[4], member)
      counts[j] = counts[j] + counter[2]
    end
  end
  answers[i] = {exceeded, counts}
end
return cmsgpack.pack(answers)
"""
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()


class Counter(Struct, frozen=True, array_like=True):
    """What is to be added to the counter `key`, up to `limit`. It lasts `ttl_ms`; 0 makes it a set of open requests."""

    key: str
    amount: int
    limit: int
    ttl_ms: int = 0


class Take(Struct, frozen=True):
    """What one request takes of all its counters, or of none; `forced` if its limits do not matter.

    `member` is its name among open requests.
    """

    member: str
    counters: tuple[Counter, ...]
    forced: bool = False


class Taken(Struct, frozen=True, array_like=True):
    """`exceeded` is the position, from 1, of the limit that refused the request, 0 when it was let in.

    `counts` are those of its counters, this request included if it was let in.
    """

    exceeded: int
    counts: list[int]


class Batch(Struct, frozen=True):
    """What is sent at once. `takes` is by organization; `frees` and `renews` are open requests by their set's key."""

    takes: dict[str, list[Take]]
    frees: dict[str, list[str]]
    renews: dict[str, list[str]]


_answers = msgspec.msgpack.Decoder(list[Taken])


class SharedStore:
    """One Redis. Every method that asks it raises `CountersAway` when an answer takes longer than its timeout."""

    def __init__(self, url: str, *, prefix: str = "moonbase", lease_ms: int = 30_000, timeout: float = 0.25) -> None:
        """Nothing is connected yet. An open request that is not renewed is dropped after `lease_ms`.

        `timeout` is in seconds: a request waits for the answer, so it is short, and Redis is near.

        Raises `ConfigurationError` for a URL that is none, and where the extra is not installed.
        """
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "limits.redis_url: Redis needs one more package; install it with: "
                f"{sys.executable} -m pip install 'moonbase[redis]'"
            ) from error
        try:
            self._redis: Any = Redis.from_url(  # its commands are typed in part only
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),  # a script whose answer was lost may have run
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError("limits.redis_url: is not a URL such as redis://127.0.0.1:6379/0") from error
        self.lease_ms = lease_ms
        self._prefix = prefix

    def key(self, organization_id: str, *parts: object) -> str:
        """The name of a counter. Those of an organization lie in one slot of a cluster."""
        return ":".join([self._prefix, f"{{{organization_id}}}", *map(str, parts)])

    async def close(self) -> None:
        await self._redis.aclose()

    async def probe(self) -> None:
        """Find out whether it counts, and teach it the script."""

        async def ask() -> None:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.script_load(_SCRIPT.decode())
            pipeline.set(f"{self._prefix}:probe", 1, px=_PROBE_MS)  # a replica answers, and cannot be written to
            await pipeline.execute()

        await _translated(ask())

    async def send(self, batch: Batch, now: int) -> dict[str, list[Taken]]:
        """Free and renew open requests, then let others in, in one round trip.

        `now` is in milliseconds. Returns what was taken, in the order of `batch.takes`.
        """
        return await _translated(self._send(batch, now))

    async def _send(self, batch: Batch, now: int) -> dict[str, list[Taken]]:
        from redis.exceptions import NoScriptError, RedisError

        calls = [self._call(takes, now) for takes in batch.takes.values()]
        commands: list[tuple[Any, ...]] = [("ZREM", key, *members) for key, members in batch.frees.items()]
        for key, members in batch.renews.items():
            ends = now + self.lease_ms
            commands.append(("ZADD", key, *[part for member in members for part in (ends, member)]))
            commands.append(("PEXPIRE", key, self.lease_ms))
        before = len(commands)
        commands += calls
        if len(commands) == 1:  # half the price of a pipeline
            try:
                answers = [await self._redis.execute_command(*commands[0])]
            except NoScriptError as error:
                answers = [error]
        else:
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers = await pipeline.execute(raise_on_error=False)
        for position, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):  # it was flushed, or another server has taken over
                await self._redis.script_load(_SCRIPT.decode())
                answers[position] = await self._redis.execute_command(*commands[position])
            elif isinstance(answer, RedisError):
                raise answer
        return {
            organization: _answers.decode(answer)
            for organization, answer in zip(batch.takes, answers[before:], strict=True)
        }

    def _call(self, takes: list[Take], now: int) -> tuple[Any, ...]:
        keys: dict[str, int] = {}
        packed = []
        for take in takes:
            counters = [
                (keys.setdefault(each.key, len(keys) + 1), each.amount, each.limit, each.ttl_ms)
                for each in take.counters
            ]
            packed.append((take.member, take.forced, counters))
        return ("EVALSHA", _SHA, len(keys), *keys, msgspec.msgpack.encode((now, self.lease_ms, packed)))


async def _translated(asking: Awaitable[T]) -> T:
    from redis.exceptions import RedisError

    try:
        return await asking
    except (RedisError, OSError, TimeoutError, msgspec.DecodeError) as error:
        raise CountersAway from error
