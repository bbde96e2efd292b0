"""Deaths under live streams: what was finished is paid exactly once, and nothing is lost or invented."""

import sys
from pathlib import Path

import pytest
from sqlalchemy import URL
from tests.e2e.conftest import StartServer
from tests.e2e.ledger_chaos import Name, Report, run


def _check(report: Report, *, at_least: int) -> None:
    """There was something to compare; `pytest -rP` shows it."""
    sys.stdout.write(f"{report}\n")
    assert report.finished > at_least
    assert min(report.live) > 10


def test_killed_gateways_charge_everything_once(start_server: StartServer, tmp_path: Path) -> None:
    """On SQLite; on both kinds with `--full`."""
    report = run("gateway", tmp_path / "home", start_server, streams=40, kills=2)
    _check(report, at_least=10)
    assert report.interrupted > 10


def test_a_server_outlives_its_gateways(start_server: StartServer, tmp_path: Path) -> None:
    report = run("gateway-process", tmp_path / "home", start_server, streams=40, kills=2)
    _check(report, at_least=10)
    assert report.interrupted > 1


@pytest.mark.parametrize("victim", ["database", "redis"])
def test_gateways_outlive_what_they_use(start_server: StartServer, tmp_path: Path, victim: Name) -> None:
    report = run(victim, tmp_path / "home", start_server, streams=40, kills=2)
    _check(report, at_least=10)
    assert report.interrupted == report.failed == report.unanswered == 0


@pytest.mark.full
def test_fifty_killed_gateways_charge_everything_once(start_server: StartServer, url: URL, tmp_path: Path) -> None:
    report = run("gateway", tmp_path / "home", start_server, url=url, streams=200, kills=50)
    _check(report, at_least=1_000)
    assert report.interrupted > 1_000


@pytest.mark.full
def test_a_server_outlives_fifty_of_its_gateways(start_server: StartServer, url: URL, tmp_path: Path) -> None:
    report = run("gateway-process", tmp_path / "home", start_server, url=url, streams=200, kills=50)
    _check(report, at_least=1_000)
    assert report.interrupted > 1_000


@pytest.mark.full
@pytest.mark.parametrize("victim", ["database", "redis", "redis-refusing"])
def test_gateways_outlive_fifty_deaths_of_what_they_use(
    start_server: StartServer, tmp_path: Path, victim: Name
) -> None:
    report = run(victim, tmp_path / "home", start_server, streams=200, kills=50)
    _check(report, at_least=1_000)
    assert report.interrupted == report.failed == report.unanswered == 0


@pytest.mark.full
def test_fifty_killed_workers_charge_what_they_finished(start_server: StartServer, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    report = run("engine", tmp_path / "home", start_server, streams=200, kills=50)
    _check(report, at_least=1_000)
    assert report.failed > 1_000
    assert report.interrupted == report.unanswered == 0
