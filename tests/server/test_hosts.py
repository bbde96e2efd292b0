"""Which hosts are ours."""

import pytest

from moonbase.server.hosts import AllowedHosts


@pytest.mark.parametrize(
    ("configured", "listening_on", "host", "ours"),
    [
        ((), "127.0.0.1", "localhost:8000", True),
        ((), "127.0.0.1", "LOCALHOST", True),
        ((), "127.0.0.1", "[::1]:8000", True),
        ((), "192.168.0.5", "192.168.0.5:8000", True),
        ((), "fd00::5", "[fd00::5]:8000", True),
        ((), "fd00::5", "[FD00::5]", True),
        ((), "127.0.0.1", "192.168.0.5", False),
        ((), "127.0.0.1", "evil.example", False),
        ((), "127.0.0.1", "localhost.evil.example", False),
        (("a.example",), "127.0.0.1", "A.example", True),
        (("A.Example",), "127.0.0.1", "a.example:1", True),
        (("a.example",), "127.0.0.1", "b.a.example", False),
        (("*.a.example",), "127.0.0.1", "b.a.example", True),
        (("*.a.example",), "127.0.0.1", "c.b.a.example", True),
        (("*.a.example",), "127.0.0.1", "a.example", False),
        (("*.a.example",), "127.0.0.1", "ba.example", False),
        (("*",), "127.0.0.1", "anything.example", True),
        (("*",), "127.0.0.1", "not a host", False),
        (("*",), "127.0.0.1", "", False),
        (("*",), "127.0.0.1", "a.example:port", False),
    ],
)
def test_a_host_is_ours_or_not(configured: tuple[str, ...], listening_on: str, host: str, ours: bool) -> None:
    hosts = AllowedHosts(configured, listening_on)
    assert [hosts.allows(host) for _ in range(2)] == [ours, ours]


def test_many_hosts_are_not_remembered_without_end() -> None:
    hosts = AllowedHosts(("*",), "127.0.0.1")
    for number in range(1_000):
        assert hosts.allows(f"host{number}.example")
    assert not hosts.allows("host 1")
