"""The servers: one that is asked, and one behind it that answers for an id of the first."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.server import Server

from benchmarks import processes

ECHO = "kimi-k2-0905-preview"
FAR = "kimi-k2-turbo-preview"
CHAOS = "kimi-k2-0711-preview"
SMALL, FAR_SMALL = "soak-small", "soak-far-small"
SMALL_WINDOW = 512
HEADER_SECONDS, BODY_SECONDS, WRITE_SECONDS, IDLE_SECONDS = 2.0, 3.0, 3.0, 4.0
METRICS_TOKEN = "soak-metrics"

_NEAR = f"""
[server]
header_timeout = {HEADER_SECONDS}
body_timeout = {BODY_SECONDS}
write_timeout = {WRITE_SECONDS}
[engine]
name = "echo"
idle_timeout = {IDLE_SECONDS}
[echo]
delay = 0.001
[chaos]
slow_seconds = 1.0
[metrics]
token = "{METRICS_TOKEN}"
[deployments.chaos]
name = "chaos"
idle_timeout = {IDLE_SECONDS}
[deployments.far]
name = "openai"
url = "{{url}}"
api_key = "{{key}}"
[models."{CHAOS}"]
deployment = "chaos"
[models."{FAR}"]
deployment = "far"
[models."{SMALL}"]
alias_of = "{ECHO}"
window = {SMALL_WINDOW}
[models."{FAR_SMALL}"]
alias_of = "{FAR}"
deployment = "far"
"""
_FAR = (
    f"metrics.token={METRICS_TOKEN}",
    "echo.delay=0.001",
    f"models.{FAR_SMALL}.alias_of={FAR}",
    f"models.{FAR_SMALL}.window={SMALL_WINDOW}",
)


@dataclass(frozen=True)
class Sample:
    """What the processes of both servers have: resident memory in MB, and open files, sockets among them."""

    near_mb: float
    far_mb: float
    near_files: int
    far_files: int


@dataclass(frozen=True)
class Servers:
    near: Server
    far: Server

    def sample(self) -> Sample:
        near, far = (processes.tree(server.process.pid) for server in (self.near, self.far))
        return Sample(
            processes.memory_mb(*near),
            processes.memory_mb(*far),
            processes.open_files(*near),
            processes.open_files(*far),
        )

    def at_work(self) -> int:
        """Choices that engines run or have waiting."""
        found = 0
        for server in (self.near, self.far):
            text = server.get("/metrics", key=METRICS_TOKEN).body.decode()
            gauges = re.findall(r"^moonbase_(?:running|waiting)\{.*\} (\d+)", text, re.MULTILINE)
            found += sum(map(int, gauges))
        return found

    def end(self) -> list[str]:
        """End both, and return what is wrong with their ends, their logs and their ledgers."""
        wrong: list[str] = []
        for name, server in (("near", self.near), ("far", self.far)):
            code = server.stop()
            if code:
                wrong.append(f"{name}: the server ended with {code}")
            wrong += [f"{name}: log: {line}" for line in _accidents(server)]
            checked = server.moonbase("ledger", "check")
            if checked.returncode:
                wrong.append(f"{name}: ledger check: {checked.stdout}{checked.stderr}")
            leases = server.moonbase("ledger", "leases")
            if leases.returncode or leases.stdout.strip():
                wrong.append(f"{name}: leases that nobody holds: {leases.stdout}{leases.stderr}")
        return wrong


@contextmanager
def running(folder: Path | None) -> Iterator[Servers]:
    """Both, with their state and logs in `folder`, else in one that is removed."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        started: list[Server] = []
        try:
            (place / "far").mkdir(parents=True)
            far = Server(place / "far", *[word for setting in _FAR for word in ("--set", setting)])
            started.append(far)
            (place / "near").mkdir()
            config = place / "near.toml"
            config.write_text(_NEAR.format(url=far.base_url, key=far.key))
            near = Server(place / "near", "--config", str(config), engine=None, env={"MOONBASE_CONFIG": str(config)})
            started.append(near)
            yield Servers(near, far)
        finally:
            for server in started:
                if server.process.poll() is None:
                    server.process.kill()
                    server.process.wait()


def _accidents(server: Server) -> list[str]:
    """Each error of the log once, with how often it came: its message and how its stack ends."""
    found = Counter(map(_essence, server.accidents))
    return [f"{count} times {what}" for what, count in found.most_common()]


def _essence(line: str) -> str:
    """Without what differs from time to time: addresses and ids."""
    with suppress(ValueError):
        record = json.loads(line)
        stack = record.get("exception", "").strip().splitlines()
        places = [part.strip() for part in stack if part.startswith('  File "')]
        line = ": ".join([record["message"].strip(), *places[-1:], *stack[-1:]])
    return re.sub(r"0x[0-9a-f]+", "0x", line)
