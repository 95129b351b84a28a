#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13, Python 3.11: a configuration that says FSDP and use_cpu trains with DDP, without a word.
# Expected: FSDP on gloo, which torch has, or an error that says that FSDP is not to be had on a CPU.
# Seen: `accelerate launch` takes distributed_type FSDP with use_cpu, sets ACCELERATE_USE_FSDP=true, and
# AcceleratorState turns MULTI_GPU, MULTI_XPU and the like into FSDP, but not MULTI_CPU: the model is whole in every process.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 accelerate==1.15.0
cat > "$folder/fsdp.yaml" <<'YAML'
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
mixed_precision: "no"
num_machines: 1
num_processes: 2
fsdp_config:
  fsdp_version: 2
YAML
cat > "$folder/kind.py" <<'PY'
import os

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
model = accelerator.prepare(torch.nn.Linear(4, 4))
if accelerator.is_main_process:
    print(os.environ["ACCELERATE_USE_FSDP"], accelerator.distributed_type.value, type(model).__name__)
PY
said="$(OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m accelerate.commands.launch --config_file "$folder/fsdp.yaml" \
  --main_process_port 0 "$folder/kind.py" 2>/dev/null | tail -1)"
echo "$said"
[ "$said" = "true MULTI_CPU DistributedDataParallel" ]
