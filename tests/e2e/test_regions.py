"""One server for the organizations of both regions, told apart by host or port."""

import http.client
import json
import socket
from typing import Any

import pytest
from tests.e2e.administrator import new_key
from tests.e2e.conftest import StartServer
from tests.e2e.server import CHAT, Server, StartFailed, chat_body

INVALID = (401, {"error": {"message": "Invalid Authentication", "type": "invalid_authentication_error"}})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ask(port: int, secret: str, host: str = "127.0.0.1") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Authorization": f"Bearer {secret}", "Host": host, "Content-Type": "application/json"}
    connection.request("POST", CHAT, chat_body(), headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


@pytest.fixture(scope="module")
def china_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(start_module_server: StartServer, china_port: int) -> Server:
    hosts = "server.china_hosts=api.example.cn,API.other.cn"
    return start_module_server("--set", f"server.china_port={china_port}", "--set", hosts)


def test_a_key_is_good_in_its_region_only(server: Server, china_port: int) -> None:
    china, world = new_key(server, "china", "zhongguo"), new_key(server, "global", "world")
    assert server.port is not None
    places = [(server.port, "127.0.0.1"), (server.port, "localhost:8000")]
    in_china = [(china_port, "localhost"), (china_port, "api.example.cn"), (server.port, "Api.Example.cn:443")]
    in_china.append((server.port, "api.other.cn"))
    for port, host in places:
        assert ask(port, world, host)[0] == 200
        assert ask(port, china, host) == INVALID
    for port, host in in_china:
        assert ask(port, china, host)[0] == 200
        assert ask(port, world, host) == INVALID
    assert server.last_usage()["currency"] == "CNY"
    assert server.accidents == []


def test_a_used_port_stops_the_start(start_server: StartServer, server: Server, china_port: int) -> None:
    with pytest.raises(StartFailed, match=f"server.china_port: cannot listen on 127.0.0.1 port {china_port}"):
        start_server("--set", f"server.china_port={china_port}")
