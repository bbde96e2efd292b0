"""A GGUF file as the engine runs it fastest: projections of the same input joined into one.

OpenVINO reads every layer of a GGUF file as seven products with weights. Query, key and value have one input, and
so have gate and up of the feed-forward network: their weights are put one below the other, and the one product's
result is split. The weights stay as they are, compressed. What comes out is a folder that OpenVINO reads.

It is made in a process of its own, which leaves no memory behind and may be ended for it:
`python -m moonbase.engines.openvino.conversion MODEL FOLDER PARENT`.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import openvino as ov
import openvino_genai as genai
from msgspec import Struct
from openvino import opset13 as ops

from moonbase.engines.supervisor import enter_worker

_log = logging.getLogger(__name__)

_VERSION = 1
_LARGEST = 1 << 30  # bytes; what is larger spends its time on reading weights, which joining does not shorten
_LONGEST = 300.0  # seconds; a file of the largest size takes a fraction of it
_MANIFEST = "manifest.json"
_TYPES = ("Convert", "Subtract", "Multiply", "Reshape")  # what makes numbers of compressed weights


class _Manifest(Struct, frozen=True):
    """What a conversion wrote: names and sizes. No files say that there is nothing to join in this model."""

    files: dict[str, int]


def converted(model: Path, cache: Path) -> Path:
    """The folder to load in the place of `model`, made when there is none for it yet; `model` where that is no use.

    Blocks, while another process makes it, too. What fails is logged, and `model` returned: it can always be loaded.
    """
    if not model.is_file() or model.stat().st_size > _LARGEST:
        return model
    place = _place(model, cache)
    try:
        manifest = _manifest(place) or _make(model, place)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("the model is used as it is, for it cannot be converted: %s", error)
        return model
    return place if manifest.files else model


def discard(place: Path) -> None:
    """Forget a folder that `converted` gave and that turned out to be damaged: the next start makes it anew."""
    shutil.rmtree(place, ignore_errors=True)


def _place(model: Path, cache: Path) -> Path:
    """One folder for each path, with one in it for each state of the file and of what reads it."""
    path, facts = model.resolve(), model.stat()
    state = (path.name, facts.st_size, facts.st_mtime_ns, version("openvino"), version("openvino-genai"), _VERSION)
    return cache / "openvino" / f"{path.stem}-{_digest(path)}" / _digest(state)


def _digest(of: object) -> str:
    return hashlib.sha256(str(of).encode()).hexdigest()[:16]


def _manifest(place: Path) -> _Manifest | None:
    """What is in a folder; None when it is not there or not whole."""
    try:
        manifest = msgspec.json.decode((place / _MANIFEST).read_bytes(), type=_Manifest)
        whole = all((place / name).stat().st_size == size for name, size in manifest.files.items())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return manifest if whole else None


def _make(model: Path, place: Path) -> _Manifest:
    """Make the folder, one process at a time, and remove what else there is for this path.

    Raises `OSError` when it cannot be written, `SubprocessError` when the conversion dies.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = _manifest(place)
        if manifest is not None:
            return manifest  # somebody else was making it
        for old in place.parent.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        unfinished = place.with_suffix(".unfinished")
        try:
            unfinished.mkdir()
            _run(model, unfinished)
            _to_disk(unfinished)
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    manifest = _manifest(place)
    if manifest is None:
        raise OSError(f"{place} does not hold what was written into it")
    if not manifest.files:
        _log.warning("the model is used as it is, for nothing in it can be joined")
    return manifest


def _run(model: Path, folder: Path) -> None:
    command = [sys.executable, "-m", __spec__.name, str(model.resolve()), str(folder), str(os.getpid())]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_LONGEST
    )
    if ended.returncode:
        last = ended.stdout.decode(errors="replace").strip().rpartition("\n")[2]
        raise subprocess.SubprocessError(f"exit status {ended.returncode}, {last or 'without a word'}")


def _to_disk(folder: Path) -> None:
    """So that no crash of the machine leaves names without contents."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _convert(model: Path, folder: Path) -> None:
    """Fill `folder`. Raises `RuntimeError` for a model that OpenVINO cannot read or that cannot be written."""
    source = folder / "source"
    source.mkdir()
    link = source / "model.gguf"
    link.symlink_to(model)  # OpenVINO writes beside what it reads
    tokenizer = genai.Tokenizer(str(link), enable_save_ov_model=True)
    with contextlib.suppress(RuntimeError):  # it writes what it has read before it looks for a device
        genai.ContinuousBatchingPipeline(
            str(link), tokenizer, genai.SchedulerConfig(), "NONE", enable_save_ov_model=True
        )
    network = ov.Core().read_model(source / "openvino_model.xml")
    if join(network):
        for path in source.glob("openvino_*tokenizer.*"):
            path.rename(folder / path.name)
        ov.save_model(network, folder / "openvino_model.xml", compress_to_fp16=False)
    del network  # it maps a file of the folder that is removed now
    shutil.rmtree(source)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / _MANIFEST).write_bytes(msgspec.json.encode(_Manifest(files)))


def join(network: ov.Model) -> int:
    """Join what can be joined, in place; returns how many products stand in the place of several."""
    alike: defaultdict[object, list[ov.Node]] = defaultdict(list)
    for node in network.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            source, weights = node.input_value(0), node.input_value(1)
            shape = _shape(weights)
            form = _form(weights.get_node(), shape[0]) if len(shape) == 2 else None
            if form is not None and node.get_attributes() == {"transpose_a": False, "transpose_b": True}:
                alike[source.get_node().get_friendly_name(), source.get_index(), form].append(node)
    groups = [nodes for nodes in alike.values() if len(nodes) > 1]
    for nodes in groups:
        rows = [_shape(node.input_value(1))[0] for node in nodes]
        weights = _stacked([node.input_value(1).get_node() for node in nodes], rows)
        product = ops.matmul(nodes[0].input_value(0), weights, False, True)
        parts = ops.variadic_split(product, ops.constant(np.int64(-1)), ops.constant(np.array(rows, np.int64)))
        for node, part in zip(nodes, parts.outputs(), strict=True):
            node.output(0).replace(part)
    network.validate_nodes_and_infer_types()
    return len(groups)


def _form(node: ov.Node, rows: int) -> object | None:
    """All about a weight of `rows` rows but their number and what is in them. Weights of one form can be stacked.

    None for one that is made in an unknown way.
    """
    kind, element, shape = node.get_type_name(), str(node.get_output_element_type(0)), list(node.get_output_shape(0))
    if kind == "Constant":
        if _is_target(node, rows):
            return kind, element, "target", tuple(node.get_data().tolist()[1:])
        if shape and shape[0] == rows:
            bits = node.get_output_element_type(0).bitwidth * int(np.prod(shape))
            return (kind, element, tuple(shape[1:])) if bits % 8 == 0 else None
        return kind, element, tuple(shape), node.data.tobytes()
    if kind not in _TYPES:
        return None
    inputs = [_form(value.get_node(), rows) for value in node.input_values()]
    return None if None in inputs else (kind, element, str(node.get_attributes()), *inputs)


def _is_target(node: ov.Node, rows: int) -> bool:
    """Whether a constant is the shape that something is brought into, rows first."""
    users = [target.get_node().get_type_name() for target in node.output(0).get_target_inputs()]
    return users == ["Reshape"] and node.get_output_element_type(0) == ov.Type.i64 and node.get_data()[0] == rows


def _stacked(nodes: Sequence[ov.Node], rows: Sequence[int]) -> ov.Node:
    """The weights of one form, with `rows` rows each, as one."""
    first = nodes[0]
    kind = first.get_type_name()
    if kind == "Constant":
        shape = list(first.get_output_shape(0))
        if _is_target(first, rows[0]):
            return ops.constant(np.array([sum(rows), *first.get_data().tolist()[1:]], np.int64))
        if not shape or shape[0] != rows[0]:
            return first
        data = np.concatenate([node.data.reshape(-1).view(np.uint8) for node in nodes])
        tensor = ov.Tensor(first.get_output_element_type(0), ov.Shape([sum(rows), *shape[1:]]))
        tensor.data.reshape(-1).view(np.uint8)[:] = data
        return ov.op.Constant(tensor)
    inputs = [
        _stacked([node.input_value(index).get_node() for node in nodes], rows)
        for index in range(first.get_input_size())
    ]
    match kind:
        case "Convert":
            return ops.convert(inputs[0], first.get_output_element_type(0).get_type_name())
        case "Subtract":
            return ops.subtract(*inputs)
        case "Multiply":
            return ops.multiply(*inputs)
        case _:
            return ops.reshape(*inputs, special_zero=first.get_attributes()["special_zero"])


def _shape(value: ov.Output) -> list[int]:
    """Of what has one; nothing for what is known at run time only."""
    shape = value.get_partial_shape()
    return list(shape.to_shape()) if shape.is_static else []


def main() -> None:
    model, folder, parent = sys.argv[1:]
    enter_worker(int(parent))
    _convert(Path(model), Path(folder))


if __name__ == "__main__":
    main()
