"""A pipeline's YAML: stages with models of their own, how many items each hands on, and whose
engines serve it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.messages import ACCEL, CPU
from infra.settings.cli import convert, read_file, unknown
from infra.settings.config import ConfigError
from infra.settings.model_config import ModelConfig

CONFIGS = Path(__file__).resolve().parents[2] / "models/configs"
MODEL_KEYS = [field.name for field in dataclasses.fields(ModelConfig)]
STAGE_KEYS = (
    "model",
    "settings",
    "checkpoint",
    "profile",
    "items",
    "keep_items",
    "batch_items",
    "pool",
    "engines",
    "device",
)
MOST_STAGES = 16
MOST_ITEMS = 40_000  # of a task that travels with its ids: a message is as large as a socket takes


@dataclass(frozen=True)
class PoolConfig:
    """Engines behind one FIFO.

    `device`: cpu (cores), cuda (the model itself), or a folder with a device's profile.
    """

    name: str
    engines: int
    device: str = CPU


@dataclass(frozen=True)
class StageConfig:
    """One stage. `checkpoint`: trained weights under the net's blob names (.npz); empty: drawn from
    the seed.

    `batch_items`: items of its largest task; None: the run's policy on cores, whole queries on a
    device. `profile`: its times in virtual time (.csv of accelerator/profiler.py); empty: as
    --service_profile or the device says.
    """

    model: ModelConfig
    pool: str
    keep_items: int | None = None
    batch_items: int | None = None
    checkpoint: str = ""
    profile: str = ""


@dataclass(frozen=True)
class Pipeline:
    """`n_items`: candidates of every query, where the file states them; `queries`: the candidates
    themselves (.npz).
    """

    name: str
    stages: tuple[StageConfig, ...]
    pools: tuple[PoolConfig, ...]
    n_items: int | None = None
    queries: str = ""

    def pool(self, stage: StageConfig) -> PoolConfig:
        """Whose engines serve the stage."""
        return next(pool for pool in self.pools if pool.name == stage.pool)

    def ranks(self, stage: StageConfig) -> bool:
        """Whether its engines give scores: a device that is only modelled has none."""
        return stage.keep_items is not None and self.pool(stage).device in (CPU, "cuda")

    @property
    def is_ranked(self) -> bool:
        """Whether it is known which items are answered: every stage chooses, and does so by scores."""
        return all(self.ranks(stage) for stage in self.stages)

    @property
    def labels(self) -> list[str]:
        """Of the stages: model and pool."""
        return [f"{stage.model.name} on {stage.pool}" for stage in self.stages]

    def as_json(self) -> dict[str, Any]:
        """What run.json holds under `pipeline`; the fingerprint is that of the stages and of all
        files they read.
        """
        return {**dataclasses.asdict(self), "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        """16 hexadecimal digits; another pipeline, other queries or weights have another one."""
        paths = ("checkpoint", "profile")
        stages = [dataclasses.replace(stage, checkpoint="", profile="") for stage in self.stages]
        digest = hashlib.sha256(repr((stages, self.pools, self.n_items)).encode())
        for file in [
            self.queries,
            *(getattr(stage, name) for stage in self.stages for name in paths),
        ]:
            digest.update(hashlib.sha256(Path(file).read_bytes() if file else b"").digest())
        return digest.hexdigest()[:16]


def read_pipeline(path: str, n_engines: int) -> Pipeline:
    """The pipeline in a YAML file; `n_engines` serve the stages that name no engines.

    Raises ConfigError.

    Paths in it are relative to its folder.
    """
    file = Path(path)
    try:
        loaded = yaml.safe_load(file.read_text())
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise _wrong(path, f"not readable as YAML: {' '.join(str(error).split())}") from error
    top = _mapping(path, loaded, ["name", "queries", "items", "pools", "stages"])
    listed = top.get("stages")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_STAGES:
        raise _wrong(path, f"needs 'stages', a list of 1 to {MOST_STAGES}")
    pools = _shared_pools(path, top.get("pools"))
    stages = []
    for i, own in enumerate(listed):
        where = f"{path}: stage {i}"
        stage, pool = _stage(
            where, _mapping(where, own, STAGE_KEYS), file.parent, pools, n_engines, i
        )
        pools[pool.name] = pool
        stages.append(stage)
    n_items = _count(path, "items", top.get("items"))
    _check_items(path, stages, [_mapping(path, own, None).get("items") for own in listed], n_items)
    used = [pool for pool in pools.values() if any(stage.pool == pool.name for stage in stages)]
    unused = sorted(pools.keys() - {pool.name for pool in used})
    if unused:
        raise _wrong(path, f"pool {unused[0]!r} serves no stage")
    queries = str(top.get("queries") or "")
    return Pipeline(
        str(top.get("name") or file.stem),
        tuple(stages),
        tuple(used),
        n_items if n_items is not None else _count(path, "items", listed[0].get("items")),
        str(_beside(f"{path}: queries", file.parent, queries)) if queries else "",
    )


def _stage(
    where: str,
    own: Mapping[str, Any],
    folder: Path,
    pools: Mapping[str, PoolConfig],
    n_engines: int,
    number: int,
) -> tuple[StageConfig, PoolConfig]:
    model = _model(where, own, folder)
    named = own.get("pool")
    alone = "engines" in own or "device" in own
    if named is not None and alone:
        raise _wrong(where, "names a pool and engines or a device of its own; give one")
    if named is not None and (not isinstance(named, str) or named not in pools):
        raise _wrong(
            where, f"pool {named!r} is not under 'pools' ({', '.join(pools) or 'none there'})"
        )
    if named is not None:
        pool = pools[named]
    elif alone:
        engines = _count(where, "engines", own.get("engines", 1)) or 1
        pool = PoolConfig(f"stage{number}", engines, str(own.get("device", CPU)))
    else:
        pool = PoolConfig(CPU, n_engines)
    _check_pool(where, pool)
    files = {
        key: str(_beside(f"{where}: {key}", folder, str(own[key])))
        for key in ("checkpoint", "profile")
        if own.get(key)
    }
    keep, batch = (_count(where, key, own.get(key)) for key in ("keep_items", "batch_items"))
    return StageConfig(model, pool.name, keep, batch, **files), pool


def _model(where: str, own: Mapping[str, Any], folder: Path) -> ModelConfig:
    """Of a name in models/configs or a file, with the stage's own `settings` on top."""
    name = own.get("model")
    if not isinstance(name, str):
        raise _wrong(where, "needs 'model', a name in models/configs or a model's JSON file")
    known = {
        str(read_file(str(file))["model_name"]): file for file in sorted(CONFIGS.glob("*.json"))
    }
    file = known.get(name, folder / name)
    if not file.is_file():
        raise _wrong(
            where, f"model {name!r} is none of {', '.join(known)} and no file beside the pipeline"
        )
    try:
        settings = read_file(str(file))
        settings = {key: value for key, value in settings.items() if key in MODEL_KEYS}
        for key, value in _mapping(
            f"{where}: settings", own.get("settings") or {}, MODEL_KEYS
        ).items():
            settings[key] = convert(key, value)
        config = ModelConfig(**settings)
    except ConfigError as error:
        if error.flag == "pipeline":
            raise
        raise _wrong(where, f"model {name!r}: {error}") from error
    except ValueError as error:
        raise _wrong(where, str(error)) from error
    return config if config.model_name else dataclasses.replace(config, model_name=Path(name).stem)


def _shared_pools(path: str, listed: Any) -> dict[str, PoolConfig]:
    pools = {}
    for name, own in _mapping(path, listed or {}, None).items():
        where = f"{path}: pool {name!r}"
        if re.fullmatch(rf"{CPU}|{ACCEL}|stage\d+", str(name)):
            raise _wrong(
                where, "has a name that is given to others: cpu, accel, stage0, ...; choose another"
            )
        facts = _mapping(where, own or {}, ["engines", "device"])
        pools[str(name)] = PoolConfig(
            str(name),
            _count(where, "engines", facts.get("engines", 1)) or 1,
            str(facts.get("device", CPU)),
        )
        _check_pool(where, pools[str(name)])
    return pools


def _check_pool(where: str, pool: PoolConfig) -> None:
    if pool.device == "cuda" and pool.engines != 1:
        raise _wrong(where, f"engines is {pool.engines}; a CUDA device has one")


def _check_items(
    path: str, stages: Sequence[StageConfig], stated: Sequence[Any], n_items: int | None
) -> None:
    """What comes in is what the stage before keeps, and nobody keeps more."""
    coming: int | None = n_items
    for i, (stage, own) in enumerate(zip(stages, stated, strict=True)):
        where = f"{path}: stage {i}"
        items = _count(where, "items", own)
        if items is not None and coming is not None and items != coming:
            raise _wrong(where, f"items is {items}, but {coming} come in")
        coming = items if items is not None else coming
        keep = stage.keep_items
        if keep is not None and coming is not None and keep > coming:
            raise _wrong(where, f"keep_items is {keep}, but only {coming} come in")
        if i < len(stages) - 1 and keep is None:
            raise _wrong(where, "has no keep_items; only the last stage may do without")
        coming = keep if keep is not None else coming


def _count(where: str, key: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(where, f"{key} is {value!r}; expected a whole number of at least 1")
    return value


def _mapping(where: str, value: Any, known: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, f"is {value!r}; expected keys with values")
    for key in value:
        if known is not None and key not in known:
            guess = unknown(str(key), known)
            raise _wrong(
                where, guess if "did you mean" in guess else f"{guess}; known: {', '.join(known)}"
            )
    return value


def _beside(where: str, folder: Path, name: str) -> Path:
    file = folder / name
    if not file.is_file():
        raise _wrong(where, f"{file}: no such file")
    return file


def _wrong(where: str, problem: str) -> ConfigError:
    return ConfigError("pipeline", f"{where}: {problem}")
