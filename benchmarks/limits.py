"""What do limits cost a request?

`python -m benchmarks.limits [--requests 50000] [--redis redis://127.0.0.1:6379/0]`

Admissions that are charged and left, without any HTTP: one after the other, and with Redis also 64 at a time. "On the
path" is wall time as the request sees it; "CPU" is that of the whole process.
"""

import argparse
import asyncio
import time
import uuid

import uvloop

from moonbase.accounts.changes import milliseconds
from moonbase.accounts.limits import Counters, Limiter
from moonbase.accounts.local_counters import LocalCounters
from moonbase.accounts.shared_counters import SharedCounters
from moonbase.store.records import Caller, Limits
from moonbase.store.shared_counters import SharedStore
from moonbase.telemetry import Metrics

_MANY = 10**12
_ALL = Limits(concurrency=_MANY, rpm=_MANY, tpm=_MANY, tpd=_MANY)
_CALLERS = {
    "no limits": Caller("org-a", "proj-a", "ak-a", "u", 5, "USD", postpaid=True),
    "limits of an organization": Caller("org-a", "proj-a", "ak-a", "u", 5, "USD", organization_limits=_ALL),
    "twelve limits": Caller(
        "org-a", "proj-a", "ak-a", "u", 5, "USD", organization_limits=_ALL, project_limits=_ALL, key_limits=_ALL
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--redis", help="URL of a Redis to measure too")
    options = parser.parse_args()
    uvloop.run(_measure(options.requests, options.redis))


async def _measure(requests: int, url: str | None) -> None:
    for name, caller in _CALLERS.items():
        await _round(f"memory, {name}", LocalCounters(clock=milliseconds), caller, requests, 1)
    if url is None:
        return
    store = SharedStore(url, prefix=f"benchmark-{uuid.uuid4().hex}")
    async with SharedCounters(store, clock=milliseconds, metrics=Metrics()) as shared:
        for name, caller in _CALLERS.items():
            for at_once in (1, 64):
                await _round(f"Redis, {name}, {at_once} at once", shared, caller, requests // 10, at_once)


async def _round(name: str, counters: Counters, caller: Caller, requests: int, at_once: int) -> None:
    limiter = Limiter(counters)

    async def ask(count: int) -> None:
        for _ in range(count):
            with limiter.admit(caller) as admission:
                await admission.charge(900)

    await ask(100)
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(ask(requests // at_once) for _ in range(at_once)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    done = requests // at_once * at_once
    print(f"{name}: {wall / done * at_once * 1e6:.1f} µs on the path, {cpu / done * 1e6:.1f} µs CPU a request")


if __name__ == "__main__":
    main()
