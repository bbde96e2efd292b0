"""Which URLs name an upstream."""

import pytest

from moonbase.engines.upstream.address import Address, parse_address
from moonbase.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "address", "authority"),
    [
        ("http://127.0.0.1:8000/v1", Address("http", "127.0.0.1", 8000, "/v1"), "127.0.0.1:8000"),
        ("http://localhost", Address("http", "localhost", 80, ""), "localhost"),
        ("HTTPS://Api.Moonshot.AI/v1/", Address("https", "api.moonshot.ai", 443, "/v1"), "api.moonshot.ai"),
        ("https://example.com:443", Address("https", "example.com", 443, ""), "example.com"),
        ("https://example.com:80/", Address("https", "example.com", 80, ""), "example.com:80"),
        ("http://[::1]:8000", Address("http", "::1", 8000, ""), "[::1]:8000"),
        ("http://my_engine.internal.:9/a%20b", Address("http", "my_engine.internal.", 9, "/a%20b"), None),
    ],
)
def test_an_address(url: str, address: Address, authority: str | None) -> None:
    assert parse_address(url) == address
    assert authority in (None, address.authority)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://example.com",
        "unix:///run/socket",
        "http://",
        "http:///v1",
        "http://example.com:0",
        "http://example.com:99999",
        "http://example.com:x",
        "http://exa mple.com",
        "http://example.com/a b",
        "http://example.com/\r\nx",
        "http://example.com\n",
        "http://exämple.com",
        "http://[::1",
        "http://[fe80::1%25eth0]",
        "http://a..b",
        "http://" + "a" * 64,
        "http://" + "a." * 130 + "com",
        "http://example.com/?key=s3cret",
        "http://example.com/?",
        "http://example.com/#part",
        "http://user:s3cret@example.com",
        "http://user@example.com",
        "http://@example.com",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_address(url)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("[::1]", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
    ],
)
def test_what_is_this_machine(host: str, loopback: bool) -> None:
    assert parse_address(f"http://{host}").loopback is loopback
