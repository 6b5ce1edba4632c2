"""The case of a bundle's inference network: by PyTorch, by what it is exported to, and by what a GPU adds."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.utils import convert_to_onnx, convert_to_torchscript, convert_to_trt
from monai.utils import optional_import
from torch import nn

from tools.benchmark.case import BenchmarkCase, Variant, Work
from tools.benchmark.variants import Array, autocast, config, times

onnxruntime, _ = optional_import("onnxruntime")

HALF = 0.1  # tolerance of a probability in half precision
NORMALISATION = 0.02  # of a probability in onnxruntime, whose normalisation sums less accurately over large volumes

Network = Callable[[torch.Tensor], torch.Tensor]


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Returns those of exclusive classes for logits `(B, classes, ...)`."""
    return logits.softmax(1)


def export(
    bundle: Path, device: torch.device, *, shape: tuple[int, ...], activation: Callable[[torch.Tensor], torch.Tensor]
) -> BenchmarkCase:
    """Returns the case of one pass of the network of `inference.yaml`, with seeded random weights, on random values.

    On a CPU the variants are `eager`, `torchscript` and, where it is installed, `onnxruntime`; on CUDA `eager`,
    `torchscript`, `amp`, `compile` and, where Torch-TensorRT is installed, `tensorrt_fp32` and `tensorrt_fp16`.

    Args:
        bundle: folder of the bundle.
        device: where to compute.
        shape: of the input, `(B, C, ...)`.
        activation: what makes probabilities, which are compared, of the network's logits.
    """
    cuda = device.type == "cuda"

    def work(make: Callable[[], Network], *, amp: bool = False) -> Callable[[], Work]:
        def prepare() -> Work:
            network, image = make(), _image(shape).to(device)

            @torch.inference_mode()
            def answer() -> dict[str, torch.Tensor]:
                with autocast(device, enabled=amp):
                    logits = network(image)
                return {"probabilities": activation(logits.float())}

            return answer

        return prepare

    eager = functools.partial(_as_in_config, bundle, device, network=functools.partial(_network, bundle))
    variants = {
        "eager": Variant(prepare=work(eager)),
        "torchscript": Variant(prepare=work(functools.partial(_torchscript, bundle, shape, device=device)), atol=1e-4),
    }
    if cuda:
        fast = Variant(prepare=work(eager, amp=True), atol=HALF)
        variants |= {"amp": fast, "compile": Variant(prepare=work(lambda: torch.compile(eager())), atol=1e-3)}
    elif find_spec("onnxruntime"):
        session = functools.partial(_onnxruntime, bundle, shape)
        variants["onnxruntime"] = Variant(prepare=work(session), atol=NORMALISATION)
    if cuda and find_spec("torch_tensorrt"):
        for name, atol in (("fp32", 1e-2), ("fp16", HALF)):
            engine = functools.partial(_tensorrt, bundle, shape, precision=name)
            variants[f"tensorrt_{name}"] = Variant(prepare=work(engine), atol=atol)
    return BenchmarkCase(
        name="export",
        unit=f"probabilities for {times(shape)} values",
        variants=variants,
        inputs=lambda: {"image": _image(shape)},
        on_request=True,
    )


@functools.cache
def _image(shape: tuple[int, ...]) -> torch.Tensor:
    """Random values from 0 to 1; slices in the order of memory in which inferers make batches of them."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return image.to(memory_format=torch.channels_last) if image.ndim == 4 else image


def _small(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(1, shape[1], *(min(size, 64) for size in shape[2:]))


@functools.cache
def _weighted(bundle: Path) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = config(bundle, "inference", changes={}).get_parsed_content("network_def")
    return made.eval()


def _network(bundle: Path) -> nn.Module:
    return copy.deepcopy(_weighted(bundle))


def _as_in_config(bundle: Path, device: torch.device, *, network: Callable[[], nn.Module]) -> nn.Module:
    """Brings a network to the device, and into the order of memory, as the bundle does."""
    changes: dict[str, Any] = {"device": device, "network_def": network()}
    placed: nn.Module = config(bundle, "inference", changes=changes).get_parsed_content("network")
    return placed


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmark-")


@functools.cache
def _torchscript_file(bundle: Path) -> str:
    path = f"{_folder().name}/{bundle.name}.ts"
    convert_to_torchscript(_network(bundle), path)
    return path


def _torchscript(bundle: Path, shape: tuple[int, ...], *, device: torch.device) -> nn.Module:
    load = functools.partial(torch.jit.load, _torchscript_file(bundle), map_location=device)
    network = _as_in_config(bundle, device, network=load)
    with torch.inference_mode():
        for _ in range(2):  # the first pass is watched, the second compiles
            network(_small(shape).to(device))
    return network


@functools.cache
def _onnx_file(bundle: Path, shape: tuple[int, ...]) -> str:
    path = f"{_folder().name}/{bundle.name}.onnx"
    names = {"input_names": ["image"], "output_names": ["pred"]}
    axes = {name: dict(enumerate(("batch", "channel", "h", "w", "d")[: len(shape)])) for name in ("image", "pred")}
    for axis in axes.values():
        del axis[1]
    options = {"use_trace": True, "dynamo": False, "opset_version": 18, "dynamic_axes": axes, **names}
    convert_to_onnx(_network(bundle), [_small(shape)], filename=path, **options)
    return path


def _onnxruntime(bundle: Path, shape: tuple[int, ...]) -> Network:
    """Returns the network in onnxruntime, with as many threads as PyTorch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_onnx_file(bundle, shape), options, providers=["CPUExecutionProvider"])

    def answer(image: torch.Tensor) -> torch.Tensor:
        found: Array = session.run(None, {"image": np.ascontiguousarray(image.numpy())})[0]
        return torch.from_numpy(found)

    return answer


def _tensorrt(bundle: Path, shape: tuple[int, ...], *, precision: str) -> Network:
    engine: Network = convert_to_trt(_network(bundle), precision, shape)
    return engine
