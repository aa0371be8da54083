"""Where numbers come from: versions, machine, commit."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "scipy", "pandas", "pyarrow", "matplotlib")


@functools.cache
def cpu_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def git_commit() -> str | None:
    """Commit of this tree, with + if files differ from it; None outside of a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def provenance(seed: int) -> dict[str, Any]:
    """Where a run's numbers come from, as run.json holds it under `provenance`."""
    import psutil  # noqa: PLC0415 (a borrowed GPU machine may lack it)

    return {
        "python": sys.version.split()[0],
        "packages": package_versions(),
        "cpu": cpu_name(),
        "cores": len(usable_cores()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "seed": seed,
        "git_commit": git_commit(),
    }
