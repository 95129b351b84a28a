"""What this process uses of the machine."""

import os
import sys
from pathlib import Path


def _resident_peak() -> int:
    """Highest resident memory so far, in bytes; 0 where the platform does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # the kernel's own figure; ru_maxrss would carry over the parent's peak
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if os.name == "nt":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_bytes() -> int:
    """Peak memory of this process: device bytes when it works on CUDA, resident memory otherwise."""
    torch = sys.modules.get("torch")  # never the one to import it
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return _resident_peak()


def forget_peak() -> None:
    """Let `peak_bytes` tell the highest from now on, where the platform can."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def memory_bytes() -> int:
    """Memory of this computer."""
    import psutil

    return psutil.virtual_memory().total
