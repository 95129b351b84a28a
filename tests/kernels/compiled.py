"""Compile our prefill and training kernels for GPUs that are not here: `python -m tests.kernels.compiled`.

Prints a JSON object: for each kernel, architecture and dtype the shared memory in bytes. Needs triton and no device.
"""

import json
import warnings
from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from app.kernels import regions_triton, selected_grad_triton, selected_triton
from app.kernels.selected_triton import TILES

ARCHITECTURES = (80, 90)  # A100, H100 and H200
FLOATS = {"q_ptr", "k_ptr", "v_ptr", "out_ptr", "grad_ptr", "dq_ptr", "dk_ptr", "dv_ptr", "cos_ptr", "sin_ptr", "x_ptr"}
LONGS = {"blocks_ptr", "order_ptr", "starts_ptr"}


def kinds(names: list[str], constants: Mapping[str, Any], dtype: str) -> dict[str, str]:
    """The type of each argument that is no constant, by its name."""

    def kind(name: str) -> str:
        if name in FLOATS:
            return f"*{dtype}"
        if name in ("lse_ptr", "delta_ptr", "mass_ptr"):
            return "*fp32"
        if name.endswith("_ptr"):
            return "*i64" if name in LONGS else "*i32"
        return "fp32" if name == "scale" else "i32"

    return {name: "constexpr" if name in constants else kind(name) for name in names}


def shared(kernel: Any, constants: Mapping[str, Any], dtype: str, capability: int, warps: int, **types: str) -> int:
    """Compile down to machine code; the shared memory that it takes."""
    names = kernel.arg_names
    aligned = [name for name in names if name.endswith("_ptr") or name.startswith(("q_", "out_", "grad_", "dq_"))]
    source = ASTSource(
        kernel,
        {**kinds(names, constants, dtype), **types},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": 2}
    )
    assert made.asm["cubin"]
    return made.metadata.shared


def listed(capability: int, dim: int, dtype: str) -> dict[str, int]:
    """The kernels that walk lists, with the tiles that they are launched with."""
    made = {}
    for kernel, name in (
        (selected_triton._forward, "forward"),
        (selected_triton._mass, "mass"),
        (selected_grad_triton._backward_queries, "queries"),
        (selected_grad_triton._backward_keys, "keys"),
    ):
        tiles = TILES[name][0 if capability >= 90 else 1]
        constants = {"HEADS": 4, "L": 64, "HALF": dim // 2, "TILES": 64 // tiles.keys, "BLOCK_M": tiles.rows}
        constants |= {"BLOCK_N": tiles.keys, "BLOCK_H": dim // 2, "EVEN": True, "ROWS_EVEN": True}
        made[name] = shared(kernel, constants, dtype, capability, tiles.warps)
    return made


def found(capability: int, dtype: str) -> dict[str, int]:
    """The kernels that find regions."""
    types, out = {"q_ptr": f"*{dtype}", "k_ptr": f"*{dtype}"}, {"out_ptr": "*fp32"}
    precision = "tf32x3" if dtype == "fp32" else "ieee"
    scores = {"BLOCK_Q": regions_triton.BLOCK_Q, "BLOCK_R": 8, "BLOCK_F": 16, "BLOCK_D": 64, "PRECISION": precision}
    return {
        "scores": shared(regions_triton._scores, scores, dtype, capability, 8, **types, **out),
        "means": shared(regions_triton._means, {"ROWS": 32, "BLOCK_D": 128}, dtype, capability, 4, **out),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    bytes_of = {}
    for capability, dtype in zip(ARCHITECTURES, ("fp32", "bf16"), strict=True):
        bytes_of |= {f"sm_{capability} {name}": x for name, x in listed(capability, 128, "bf16").items()}
        bytes_of |= {f"sm_{capability} {name}": x for name, x in found(capability, dtype).items()}
    print(json.dumps(bytes_of))
