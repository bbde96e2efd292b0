"""A worker without a model, for the tests of the supervisor: the first argument says how it behaves."""

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path

from moonbase.engines.supervisor import enter_worker


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    enter_worker(options.parent)
    lives = options.folder / "lives"
    with lives.open("a") as file:
        file.write(".")
    life = len(lives.read_text())
    listener = socket.socket(fileno=options.socket)
    match options.mode:
        case "exit":
            sys.exit(3)
        case "silent":
            time.sleep(600)
        case "unaccepting" if life == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case "chatty":
            sys.stdout.write("x" * 100_000 + "\na last line\n")
            sys.stdout.flush()
    connection, _ = listener.accept()
    connection.sendall(b"ready")
    if life == 3:
        listener.setblocking(False)
        try:
            listener.accept()
        except BlockingIOError:
            connection.sendall(b"alone")
    while data := connection.recv(100):
        match data:
            case b"echo":
                connection.sendall(data)
            case b"hang up":
                connection.shutdown(socket.SHUT_RDWR)
                time.sleep(600)
            case b"babble":
                connection.sendall(b"nonsense")


if __name__ == "__main__":
    main()
