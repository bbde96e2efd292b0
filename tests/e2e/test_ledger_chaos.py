"""Gateways killed under live streams: what was finished is paid exactly once, and nothing is lost or invented."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import URL
from tests.e2e.conftest import StartServer
from tests.e2e.ledger_chaos import DELAY, Chaos
from tests.e2e.server import Server

from moonbase.store.database import database_url
from moonbase.store.migrate import migrate


def _chaos(start_server: StartServer, url: URL, home: Path, *, streams: int, kills: int) -> Chaos:
    asyncio.run(migrate(url))
    address = url.render_as_string(hide_password=False)
    options = [f"database.url={address}", f"echo.delay={DELAY}", "engine.max_running=1000"]
    arguments = [argument for option in options for argument in ("--set", option)]

    def start(_: int) -> Server:
        return start_server(*arguments, env={"MOONBASE_HOME": str(home)})

    return Chaos(url, start, streams=streams, kills=kills)


def test_killed_gateways_charge_everything_once(start_server: StartServer, tmp_path: Path) -> None:
    """On SQLite; on both kinds with `--full`."""
    url = database_url(None, tmp_path / "home")
    report = _chaos(start_server, url, tmp_path / "home", streams=40, kills=2).run()
    assert report.finished > 10
    assert report.interrupted > 10


@pytest.mark.full
def test_fifty_killed_gateways_charge_everything_once(start_server: StartServer, url: URL, tmp_path: Path) -> None:
    report = _chaos(start_server, url, tmp_path / "home", streams=200, kills=50).run()
    assert report.finished > 1_000
    assert report.interrupted > 1_000
