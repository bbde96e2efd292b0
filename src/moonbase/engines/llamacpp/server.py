"""llama.cpp's own HTTP server as a process, from the package xllamacpp: `python -m moonbase.engines.llamacpp.server`.

It is loaded here and nowhere else. Further arguments, `NAME=VALUE`, set fields of `xllamacpp.CommonParams`, for what a
machine needs: `n_gpu_layers=99`, `tensor_buft_overrides=".ffn_.*_exps.=CPU"`.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import xllamacpp

from moonbase.engines.llamacpp.wire import KEY_VARIABLE

_NICENESS = 5
_WARNINGS = 2
_BATCH = 512  # tokens of a prompt between two looks at everything else
_OTHER_THREADS = 16  # for looks at the server's health and for connections that are being closed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--gateways", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    os.nice(_NICENESS)
    parameters = _parameters(arguments)
    for setting in arguments.settings:
        _set(parameters, setting)
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        sys.exit(f"{Path(arguments.model).name} cannot be served: {error}")
    for number in (signal.SIGINT, signal.SIGTERM):  # the server's handlers wait for what is being generated
        signal.signal(number, signal.SIG_DFL)
    while server.listening_address:  # it serves in threads of its own, for as long as it is held here
        signal.pause()


def _parameters(arguments: argparse.Namespace) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = arguments.model
    parameters.port = arguments.port
    parameters.api_keys = [os.environ[KEY_VARIABLE]]
    parameters.n_ctx = arguments.window * arguments.slots
    parameters.n_parallel = arguments.slots
    # Each open response takes one, and each gateway opens as many as there are slots.
    parameters.n_threads_http = arguments.gateways * (2 * arguments.slots + _OTHER_THREADS)
    parameters.n_batch = _BATCH
    parameters.cache_ram_mib = 0  # prompts of ended requests are kept in the slots and nowhere else
    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.verbosity = _WARNINGS
    if arguments.threads:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = arguments.threads
    return parameters


def _set(parameters: xllamacpp.CommonParams, setting: str) -> None:
    name, _, text = setting.partition("=")
    if not name.isidentifier() or name.startswith("_") or not hasattr(parameters, name):
        sys.exit(f"xllamacpp has no parameter {name!r}")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    try:
        setattr(parameters, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        sys.exit(f"the parameter {name} cannot be {text!r}: {error}")


if __name__ == "__main__":
    main()
