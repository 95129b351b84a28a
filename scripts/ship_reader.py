"""Put a tuned adapter into models/lectern-reader: `python scripts/ship_reader.py ADAPTER [--trained-on FOLDER]`.

The tensors are rounded to bfloat16, paths of this machine are left out, and `lectern.json` keeps the base's wheel and
hashes. An adapter that was trained on a checkpoint made of the GGUF file needs that folder, whose weights are compared
with the file's. Then `python launch.py fetch` makes the checkpoint anew.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.errors import LecternError, ModelError  # noqa: E402
from app.models.adapter import read_adapter  # noqa: E402
from app.models.folder import fingerprint  # noqa: E402
from app.models.gguf import open_gguf  # noqa: E402
from app.models.merging import base_tensors, read_tensors  # noqa: E402
from app.models.shipped import Package, read_package  # noqa: E402
from app.settings import SHIPPED_MODEL  # noqa: E402

MOST_BYTES = 16_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="folder that `train` wrote")
    parser.add_argument("--gguf", type=Path, required=True, help="the base's GGUF file")
    parser.add_argument("--trained-on", type=Path, help="checkpoint of the same weights that it was trained on")
    args = parser.parse_args()
    package = read_package(SHIPPED_MODEL)
    assert package is not None
    try:
        size = ship(args.adapter, package, args.gguf, args.trained_on)
    except LecternError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{package.folder}: {size:,} bytes of adapter")
    return 0


def ship(folder: Path, package: Package, gguf: Path, trained_on: Path | None = None) -> int:
    """Write adapter, config and lectern.json of a package; returns the bytes of the adapter.

    Raises:
        ModelError: the adapter was trained on other weights, or is too large.
    """
    adapter, own = read_adapter(folder), fingerprint([gguf], {})
    if (adapter.recipe.get("base") or {}).get("fingerprint") != own:
        _compare(gguf, trained_on)
    tensors = {name: tensor.bfloat16() for file in adapter.files for name, tensor in read_tensors(file)}
    size = sum(tensor.numel() * 2 for tensor in tensors.values())
    if size > MOST_BYTES:
        raise ModelError(f"{folder}: {size:,} bytes in bfloat16, at most {MOST_BYTES:,} are shipped; take a lower rank")
    save_file(tensors, package.folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (package.folder / "adapter_model.safetensors").chmod(0o644)
    _write(package.folder / "adapter_config.json", {**adapter.config, "base_model_name_or_path": package.base["name"]})
    before = json.loads((package.folder / "lectern.json").read_text(encoding="utf-8"))
    _write(package.folder / "lectern.json", {**before, **adapter.recipe, "base": {**package.base, "fingerprint": own}})
    return size


def _compare(gguf: Path, trained_on: Path | None) -> None:
    if trained_on is None:
        raise ModelError(f"the adapter was not trained on {gguf} itself; name its base with --trained-on")
    theirs = dict(base_tensors(trained_on))
    for name, values in open_gguf(gguf).weights():
        if name not in theirs or not torch.equal(theirs[name].float(), torch.from_numpy(values.astype(np.float32))):
            raise ModelError(f"{trained_on}: {name} is not what {gguf} holds; the adapter belongs to other weights")


def _write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
