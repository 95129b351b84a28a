"""Compile the kernels of decode, H2O, packing and codes for GPUs that are not here; as tests.kernels.compiled."""

import json
import warnings

from app.kernels import codes_triton, decode_triton, h2o_triton, quant_triton
from app.kernels.layout import GROUP
from tests.kernels.compiled import ARCHITECTURES, shared

LISTS = ("key_at", "value_at", "first_at", "length_at", "start_at", "query_at", "ends")


def types_of(kernel, dtype: str, **known: str) -> dict[str, str]:
    """The type of each argument that is no constant: a pointer to `dtype` where nothing else is known."""
    numbers = ("regions", "per", "splits", "rows", "size", "queries", "stop", "length")
    types = {}
    for param in kernel.params:
        name = param.name
        if param.is_constexpr:
            continue
        if name in known:
            types[name] = known[name]
        elif name in LISTS:
            types[name] = "*i64"
        elif name == "scale":
            types[name] = "fp32"
        elif name in numbers or name.endswith(("_item", "_row", "_channel", "_column", "_head")):
            types[name] = "i32"
        else:
            types[name] = f"*{dtype}"
    return types


FLOATS = dict.fromkeys(("parts", "sums", "logits", "lse", "mass"), "*fp32")
SHAPE = {"HEADS": 8, "REGION": 64}


def decode(capability: int, dim: int, codec: str) -> int:
    """Decode over regions, as it is launched for eight query heads of a KV head in bfloat16."""
    data = {"raw": "*bf16", "int8": "*i8", "int4": "*u8"}[codec]
    constants = SHAPE | {"DIM": dim, "PAGE": 128, "CODEC": decode_triton.CODECS[codec], "GROUP": GROUP}
    constants |= {"BLOCK_M": 16, "BLOCK_H": max(16, dim // 2), "BLOCK_D": dim, "BLOCK_L": 64}
    kernel = decode_triton._regions_kernel
    halves = "*fp16" if codec != "raw" else "*bf16"
    types = types_of(kernel, "bf16", data=data, halves=halves, **FLOATS)
    return shared(kernel, constants, "bf16", capability, 4, **types)


def merge(capability: int, dim: int) -> int:
    """What joins the parts of one decode."""
    kernel = decode_triton._merge_kernel
    constants = SHAPE | {"DIM": dim, "BLOCK_M": 8, "BLOCK_D": dim, "BLOCK_L": 64, "BLOCK_S": 32}
    return shared(kernel, constants, "bf16", capability, 2, **types_of(kernel, "bf16", **FLOATS))


def sums(capability: int, dtype: str) -> dict[str, int]:
    """Column sums with either kind of mask."""
    made, floats = {}, {"lse": "*fp32", "weights": "*fp32", "out": "*fp32"}
    for mask in (0, 1, 2):
        constants = {"DIM": 128, "BLOCK_Q": 64, "BLOCK_S": 64, "BLOCK_D": 128, "MASK": mask}
        known = floats | {"seen": "*u8" if mask == 2 else f"*{dtype}"}
        rows, columns = h2o_triton._rows_kernel, h2o_triton._columns_kernel
        made[f"rows {mask}"] = shared(rows, constants, dtype, capability, 4, **types_of(rows, dtype, **known))
        constants["WEIGHTS"] = mask == 1
        made[f"columns {mask}"] = shared(columns, constants, dtype, capability, 4, **types_of(columns, dtype, **known))
    return made


def packing(capability: int, dtype: str) -> dict[str, int]:
    """Both codecs both ways, and the scan of codes."""
    made = {}
    numbers = dict.fromkeys(("item", "row", "column", "out_item"), "i32") | {"halves": "*fp16"}
    limits = {
        "LARGEST": 3e38,
        "HALF_LARGEST": 65504.0,
        "HALF_EVEN": quant_triton.HALF_EVEN,
        "BLOCK_R": quant_triton.ROWS,
    }
    for codec, kernel, out in (("int8", quant_triton._pack_int8, "*i8"), ("int4", quant_triton._pack_int4, "*u8")):
        constants = limits | {"BLOCK_C": 128 if codec == "int8" else GROUP // 2}
        made[f"pack {codec}"] = shared(
            kernel, constants, dtype, capability, 4, **types_of(kernel, dtype, out=out, **numbers)
        )
        constants = {"INT4": codec == "int4", "BLOCK_R": quant_triton.ROWS, "BLOCK_C": GROUP}
        types = types_of(quant_triton._unpack, dtype, data=out, out="*fp32", **numbers)
        made[f"unpack {codec}"] = shared(quant_triton._unpack, constants, dtype, capability, 4, **types)
    constants = {"AXES": 64, "PER_REGION": 16, "BLOCK": 256, "BLOCK_Q": 16, "BLOCK_R": 64, "BLOCK_A": 64}
    types = types_of(codes_triton._scan_kernel, "fp32", asked="*i8", codes="*i8")
    made["scan"] = shared(codes_triton._scan_kernel, constants, dtype, capability, 4, **types)
    return made


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    bytes_of = {}
    for arch in ARCHITECTURES:
        for codec in ("raw", "int8", "int4"):
            bytes_of[f"sm_{arch} decode {codec}"] = decode(arch, 128, codec)
    old, new = ARCHITECTURES  # of what multiplies little, each for one of them
    small = {old: {"merge": merge(old, 128), **packing(old, "bf16")}, new: sums(new, "bf16")}
    bytes_of |= {f"sm_{arch} {name}": x for arch, made in small.items() for name, x in made.items()}
    print(json.dumps(bytes_of))
