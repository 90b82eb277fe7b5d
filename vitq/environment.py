"""What a run ran on: versions, processor, memory, time. Nothing here imports torch or names a host or a folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pandas")


def root() -> Path | None:
    """Top folder of the source checkout that this package was imported from, or None when it is installed alone."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").is_file() else None


def home() -> Path:
    """Folder that relative result and run folders start from: the checkout, else the working directory."""
    return root() or Path.cwd()


def versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Python, vitq and library versions, as installed; a library that is absent is left out."""
    found = {"python": platform.python_version()}
    for name in ("vitq", *libraries):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def gpus() -> tuple[dict[str, object], ...]:
    """NVIDIA GPUs as `{"name", "memory_mb", "driver", "bf16"}`, asked of the driver: this opens no CUDA context."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.count(",") == 3]
    return tuple(
        {"name": name, "memory_mb": _number(memory), "driver": driver, "bf16": _number(capability) >= 8.0}
        for name, memory, driver, capability in rows
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, object]:
    """Processor, cores, threads that torch uses (if it is loaded) and GPU names."""
    found: dict[str, object] = {"cpu": processor(), "cores": cores()}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
    if gpus():
        found["gpus"] = [str(gpu["name"]) for gpu in gpus()]
    return found


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes); 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_gpu_memory_mb() -> float | None:
    """Largest GPU memory that torch has allocated in this process, in MB; None when it has not used a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return max(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())) / 1e6


def seconds_since_start() -> float:
    """Wall time since this process started, in seconds."""
    import psutil

    return time.time() - psutil.Process().create_time()
