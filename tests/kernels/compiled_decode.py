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


def decode(capability: int, dim: int, codec: str) -> dict[str, int]:
    """Both kernels of decode, as they are launched for eight query heads of a KV head in bfloat16."""
    data = {"raw": "*bf16", "int8": "*i8", "int4": "*u8"}[codec]
    floats = {name: "*fp32" for name in ("parts", "sums", "logits", "lse", "mass")}
    shape = {"HEADS": 8, "DIM": dim, "REGION": 64}
    constants = shape | {"PAGE": 128, "CODEC": decode_triton.CODECS[codec], "GROUP": GROUP}
    constants |= {"BLOCK_M": 16, "BLOCK_H": max(16, dim // 2), "BLOCK_D": dim, "BLOCK_L": 64}
    kernel, merge = decode_triton._regions_kernel, decode_triton._merge_kernel
    halves = "*fp16" if codec != "raw" else "*bf16"
    first = shared(
        kernel, constants, "bf16", capability, 4, **types_of(kernel, "bf16", data=data, halves=halves, **floats)
    )
    blocks = {"BLOCK_M": 8, "BLOCK_D": dim, "BLOCK_L": 64, "BLOCK_S": 32}
    return {
        f"decode {codec}": first,
        "merge": shared(merge, shape | blocks, "bf16", capability, 2, **types_of(merge, "bf16", **floats)),
    }


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
        for width, codec in ((64, "raw"), (128, "raw"), (128, "int8"), (128, "int4")):
            bytes_of |= {f"sm_{arch} {width} {name}": x for name, x in decode(arch, width, codec).items()}
        bytes_of |= {f"sm_{arch} {name}": x for name, x in {**sums(arch, "bf16"), **packing(arch, "bf16")}.items()}
    print(json.dumps(bytes_of))
