"""Device folders: what a device is, and its latency model for a model and a configuration."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from accelerator.latency import Profile, read_profile, write_profile
from accelerator.roofline import Roofline, read_roofline, roofline_profile
from infra.procfs import QUIET_SHARE, ForeignUse
from infra.provenance import cpu_name, package_versions
from infra.results.disturbance import MOST_TRIES, repeat_disturbed
from infra.settings.cli import parse, read_file
from infra.settings.config import ConfigError, ModelConfig, RunConfig

BATCHES = tuple(4**i for i in range(6))  # the sizes that the release profiles
KINDS = ("measured", "speedup", "roofline")
ROOT = Path(__file__).resolve().parent
CONFIGS = ROOT.parent / "models" / "configs"


def model_configs() -> dict[str, Path]:
    """{model name: configuration file} of the release."""
    files = sorted(CONFIGS.glob("*.json"))
    return {str(read_file(str(file))["model_name"]): file for file in files}


def model_config(flag: str, name: str) -> str:
    """The configuration file of the model that `flag` names; raises ValueError."""
    files = model_configs()
    if name not in files:
        raise ValueError(f"{flag}: {name!r} is not among {', '.join(files)}")
    return str(files[name])


def configurations(
    names: str, flags: Sequence[str], prog: str, defaults: dict[str, Any]
) -> list[RunConfig]:
    """The configurations of --models, comma-separated, under other flags; raises ValueError."""
    files = [model_config("--models", name) for name in names.split(",")]
    return [parse(["--config_file", file, *flags], prog, forced=defaults) for file in files]


@dataclass(frozen=True)
class Device:
    """A folder under accelerator/."""

    folder: Path
    name: str
    kind: str  # of KINDS
    settings: dict[str, Any]

    @property
    def baseline(self) -> Device:
        """The device whose times a speedup device divides."""
        return load_device(self.folder.parent, str(self.settings["baseline"]))

    @property
    def tdp_w(self) -> float | None:
        """Stated power in W; None where the folder states none."""
        value = self.settings.get("tdp_w")
        return None if value is None else float(value)

    @property
    def roofline(self) -> Roofline:
        """What the device states; raises ConfigError where that is incomplete."""
        return read_roofline(self.settings, str(self.folder / "device.yaml"))

    def characterization(self, model: ModelConfig) -> Path:
        """The file of measured times for a configuration."""
        scale = "" if model.table_scale == 1 else f"_scale{model.table_scale:g}"
        variant = "" if model.arch_variant == "caffe2" else f"_{model.arch_variant}"
        return self.folder / "characterization_data" / f"{model.name}{variant}{scale}.csv"


def accelerator_root(path: str) -> Path:
    """The folder of --accel_root_dir: as it stands, else beside this program."""
    root = Path(path)
    return root if root.is_dir() else ROOT.parent / root


def load_device(root: Path, name: str) -> Device:
    """The device in folder `name`.

    Raises ConfigError if there is none or its device.yaml is unusable.
    """
    file = root / name / "device.yaml"
    if not file.is_file():
        folders = sorted(file.parent.name for file in root.glob("*/device.yaml"))
        raise ConfigError(
            "accel_device",
            f"is {name!r}; expected cuda or a folder of {root}: {', '.join(folders) or 'none'}",
        )
    settings = yaml.safe_load(file.read_text())
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if kind not in KINDS:
        raise ConfigError("accel_device", f"{file}: kind is {kind!r}; expected {', '.join(KINDS)}")
    tdp_w = settings.get("tdp_w")
    if tdp_w is not None and not (isinstance(tdp_w, (int, float)) and tdp_w > 0):
        problem = f"{file}: tdp_w is {tdp_w!r}; expected watts above 0, or null"
        raise ConfigError("accel_device", problem)
    device = Device(file.parent, str(settings.get("name", name)), kind, settings)
    if kind == "roofline":
        _ = device.roofline  # complete, or refused now
    return device


def profile_key(model: ModelConfig, max_items: int) -> str:
    """What a measured profile depends on: the net, its largest batch, the processor, PyTorch."""
    settings = asdict(model)
    plan = settings.pop("embedding_plan")
    if plan:
        settings["embedding_plan"] = Path(plan).read_text()
    facts = [settings, min(max_items, BATCHES[-1]), cpu_name(), package_versions()["torch"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def published_speedups(device: Device, model: str) -> dict[int, float]:
    """{batch: published speedup over the baseline}; raises ConfigError for an unknown model."""
    with (device.folder / "published_speedup.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model]
    if not rows:
        raise ConfigError(
            "model_name",
            f"is {model!r}; {device.name} has published speedups for the eight models only",
        )
    return {int(row["batch_size"]): float(row["speedup"]) for row in rows}


def derived_profile(device: Device, model: str, baseline: Profile) -> Profile:
    """The baseline's time at each published batch over the published speedup."""
    speedups = published_speedups(device, model)
    provenance = {
        "device": device.name,
        "model": model,
        "source": f"time of {device.settings['baseline']} (below) / published_speedup.csv",
        **{f"baseline {key}": value for key, value in baseline.provenance.items()},
    }
    if "warning" in baseline.provenance:
        provenance["warning"] = baseline.provenance["warning"]
    return Profile({n: baseline.ms(n) / speedup for n, speedup in speedups.items()}, provenance)


def latency_profile(
    device: Device,
    model: ModelConfig,
    max_items: int = BATCHES[-1],
    measure: Callable[[], Profile] | None = None,
    *,
    renew: bool = False,
) -> Profile:
    """The device's times for a model.

    A measured device reads its characterization file if that was measured for this very net,
    processor and PyTorch (or, with `measured_elsewhere`, for this net on the machine that it
    names); otherwise, or to `renew` it, `measure` is called and the file written (the cache),
    unless the measurement was disturbed. A roofline device reads measurements where its folder has
    some, else it is computed. Raises ConfigError if nothing can be had.
    """
    if device.kind == "speedup":
        baseline = latency_profile(device.baseline, model, max_items, measure, renew=renew)
        return derived_profile(device, model.name, baseline)
    path = device.characterization(model)
    key = profile_key(model, max_items)
    elsewhere = device.kind == "roofline" or bool(device.settings.get("measured_elsewhere"))
    if path.is_file() and (elsewhere or not renew):
        saved = read_profile(path)
        if elsewhere or saved.provenance.get("key") == key:
            return saved
    if device.kind == "roofline":
        source = str(device.settings.get("source"))
        return roofline_profile(device.roofline, device.name, model, source)
    if measure is None or elsewhere:
        problem = f"{path}: no profile of this net measured on this machine"
        raise ConfigError("accel_device", problem)
    profile = measure()
    names = {"device": device.name, "model": model.name}
    profile = replace(profile, provenance={**names, **profile.provenance, "key": key})
    if "warning" in profile.provenance:  # disturbed: measured again next time
        return profile
    with contextlib.suppress(OSError):  # a read-only tree: measured again next time
        write_profile(path, profile)
    return profile


def undisturbed(measure: Callable[[], Profile]) -> Profile:
    """A profile measured while others leave the cores alone, in at most 3 tries.

    Its provenance has a `warning` where they never did: for this run, not to be kept.
    """

    def watched() -> tuple[Profile, float]:
        foreign = ForeignUse()
        profile = measure()
        return profile, foreign.share()

    def reason(measured: tuple[Profile, float]) -> str:
        share = measured[1]
        if share <= QUIET_SHARE:
            return ""
        return f"other programs used {share:.0%} of the cores while this machine was measured"

    (profile, _), disturbed = repeat_disturbed(watched, reason)
    if not disturbed:
        return profile
    warning = f"{disturbed}, {MOST_TRIES} times: its times hold for this run and are not kept"
    return replace(profile, provenance={**profile.provenance, "warning": warning})


def write_key(device: Device, model: str, key: str) -> None:
    """Note beside raw data what it was measured for (see `profile_key`)."""
    (device.folder / "raw_data" / f"results_{model}.key").write_text(key + "\n")


def read_key(device: Device, model: str) -> str:
    """What `write_key` noted; '' if it did not."""
    file = device.folder / "raw_data" / f"results_{model}.key"
    return file.read_text().strip() if file.is_file() else ""
