"""What engines draw in watts: from counters where they can be read, else as stated.

Each figure names its source.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RAPL_ROOT = Path("/sys/class/powercap")
_MICROJOULE = 1e-6


@dataclass(frozen=True, slots=True)
class Power:
    """Watts, and where they come from."""

    watts: float
    source: str


def rapl_watts(work: Callable[[], object], root: Path = RAPL_ROOT) -> float | None:
    """Mean power of all CPU packages while `work` runs, from RAPL's energy counters; None where
    none can be read.

    Source: Linux, Documentation/power/powercap; one folder intel-rapl:<package> each (AMD's carry
    the same name).
    """
    packages = sorted(root.glob("intel-rapl:[0-9]*"))
    packages = [folder for folder in packages if folder.name.count(":") == 1]
    before = [_energy_uj(folder) for folder in packages]
    if not packages or any(energy is None for energy in before):
        return None
    begun = time.monotonic()
    work()
    seconds = time.monotonic() - begun
    joules = 0.0
    for folder, first in zip(packages, before, strict=True):
        last = _energy_uj(folder)
        if first is None or last is None:
            return None
        wrap = int((folder / "max_energy_range_uj").read_text()) if last < first else 0
        joules += (last - first + wrap) * _MICROJOULE
    return joules / seconds if seconds > 0 else None


def nvml_watts() -> float | None:
    """What the first NVIDIA device draws now (NVML through nvidia-smi); None where it cannot be
    read.
    """
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        command = [
            "nvidia-smi",
            "--query-gpu=power.draw",
            "--format=csv,noheader,nounits",
            "--id=0",
        ]
        return float(
            subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        )
    return None


def _energy_uj(folder: Path) -> int | None:
    try:
        return int((folder / "energy_uj").read_text())
    except (OSError, ValueError):
        return None
