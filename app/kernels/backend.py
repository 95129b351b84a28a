"""Which code the kernels run: decided once for each kind of device, said once, shown by `doctor` and the page.

The Triton kernels of an operation stand in a file of their own beside its reference (`x_triton.py` beside `x.py`),
which is imported at the first use: triton is not on every computer, and where it is the CPU has no use for it.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from app.errors import ConfigError

VARIABLE = "LECTERN_KERNELS"
CHOICES = ("auto", "reference", "triton")
OLDEST_GPU = (8, 0)  # Ampere: the kernels' blocks need its shared memory, and bfloat16
REFERENCE = "PyTorch reference"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """What runs, and why."""

    kind: Literal["reference", "triton"]
    why: str

    @property
    def name(self) -> str:
        return f"Triton {_version('triton')}" if self.kind == "triton" else REFERENCE


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on this tensor runs its Triton kernel; float64 is for the references.

    So is bfloat16 in Triton's interpreter, which multiplies the bits of such matrices as whole numbers.
    """
    lacks = (torch.float64, torch.bfloat16) if interpreting() else (torch.float64,)
    return backend(tensor.device.type).kind == "triton" and tensor.dtype not in lacks


def backend_name(device: str | torch.device = "cuda") -> str:
    """What runs on a device, for people: `Triton 3.9.0` or `PyTorch reference`."""
    return backend(torch.device(device).type).name


@cache
def backend(device: str) -> Backend:
    """What runs on one kind of device, "cuda" or "cpu"; LECTERN_KERNELS decides, `auto` when it is not set.

    Raises:
        ConfigError: LECTERN_KERNELS is unknown, or asks for what this computer cannot do.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE}={choice}: not known; choose one of {', '.join(CHOICES)}")
    if choice == "reference":
        return Backend("reference", f"{VARIABLE}=reference")
    lack = _lack(device)
    if choice == "triton":
        if lack and (device == "cuda" or not torch.cuda.is_available()):
            raise ConfigError(f"{VARIABLE}=triton: {lack}; leave it out, or set it to reference")
        return Backend("reference", lack) if lack else Backend("triton", f"{VARIABLE}=triton")
    if device != "cuda":
        return Backend("reference", "Triton's kernels are for CUDA devices")
    if lack:
        logger.warning("attention runs the PyTorch reference, which is slower: %s", lack)
        return Backend("reference", lack)
    return Backend("triton", "a CUDA device")


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: for tests. It counts before triton is first imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def flash_varlen() -> Callable[..., Any] | None:
    """flash-attn's attention over texts of several lengths; None where it is not installed or not allowed."""
    if os.environ.get(VARIABLE) == "reference" or importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:  # built for another torch
        logger.warning("flash-attn is installed but cannot be used: %s", error)
        return None
    return flash_attn_varlen_func


def _lack(device: str) -> str:
    """What keeps Triton from running on a kind of device; empty when nothing does."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return ""
    if device != "cuda" or not torch.cuda.is_available():
        return "Triton needs a CUDA device, and torch sees none"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_GPU:
        return f"the GPU is of capability {capability[0]}.{capability[1]}, and the kernels need {OLDEST_GPU[0]}.0"
    return ""


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
