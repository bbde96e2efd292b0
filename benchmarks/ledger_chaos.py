"""What is lost when a gateway, the database, Redis or an engine's worker dies under live streams, again and again?

`python -m benchmarks.ledger_chaos [--victim NAME] [--kills 50] [--streams 200] [--database URL] [--seed 0]`

The run is that of tests/e2e/ledger_chaos.py, which holds every answer against the ledger and ends with an error at the
first that is not as it must be: three servers, and 0 to 2 seconds until what was killed is started again. A gateway
starts at once; a worker is started by its server, the later the more often it has died of late. A database and a Redis
that are to be killed are started for it, PostgreSQL by the user `postgres` where root asks.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.e2e.ledger_chaos import NAMES, run
from tests.e2e.server import Server

from moonbase.store.database import database_url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", choices=NAMES, default="gateway")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--database", help="URL of an empty database; by default a SQLite file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.database and options.victim == "database":
        parser.error("a database that is to be killed is started for it; leave --database out")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"

        def start(*arguments: str, **given: Any) -> Server:
            return Server(Path(tempfile.mkdtemp(dir=folder)), *arguments, **given)

        url = None if options.database is None else database_url(options.database, home)
        report = run(
            options.victim, home, start, url=url, streams=options.streams, kills=options.kills, seed=options.seed
        )
    print(f"{options.victim} killed {report.kills} times in {time.monotonic() - began:.0f} s")
    print(report)


if __name__ == "__main__":
    main()
