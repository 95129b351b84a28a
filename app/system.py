"""This process and its machine: what it takes, in words for people, and that nothing leaves the machine.

The set-up imports it too, so it needs nothing but Python until psutil is there.
"""

import ctypes
import functools
import os
import platform
import sys
from collections.abc import MutableMapping
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


def cpu_name() -> str:
    """What this computer's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


KEPT_BYTES = 512 << 20  # freed memory that stays with the process
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's mallopt


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep what it frees, for all threads together, where the C library is glibc.

    It gives large blocks back at once otherwise, and a new one costs a page fault for each 4 KiB: several times what
    simple operations on it take.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, KEPT_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES)):
        if not library.mallopt(option, value) and option == _MMAP_THRESHOLD:
            library.mallopt(option, 32 << 20)  # the most that older releases take


def plural(number: int, word: str) -> str:
    """`plural(2, "page")` is "2 pages"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def size_text(size_bytes: float) -> str:
    """Bytes in the largest fitting unit of a thousand: 0 B, 640 KB, 1.5 GB."""
    value = float(size_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit in ("B", "KB") or value >= 9.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def keep_private(*, download: bool = False, environment: MutableMapping[str, str] | None = None) -> None:
    """Set the environment so that nothing leaves this computer.

    The values win over what the user's shell exports: a promise of Lectern, not a preference.

    Args:
        download: the user asked for a model from the hub (--download), the one contact allowed.
        environment: os.environ when None.
    """
    values = os.environ if environment is None else environment
    values["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio counts only the text "True" as on
    values["GRADIO_SHARE"] = "False"
    values["HF_HUB_DISABLE_TELEMETRY"] = "1"
    values["DO_NOT_TRACK"] = "1"
    values["HF_HUB_OFFLINE"] = "0" if download else "1"
    values["TOKENIZERS_PARALLELISM"] = "false"  # no warning when a worker process is forked
