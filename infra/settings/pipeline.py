"""A pipeline's YAML: its stages, how many items each hands on, and whose engines serve it."""

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
FILE_KEYS = "name queries items pools stages".split()
STAGE_KEYS = (
    "model settings checkpoint profile items keep_items batch_items pool engines device".split()
)
POOL_KEYS = "engines device".split()
CUDA = "cuda"
MOST_STAGES = 16


@dataclass(frozen=True)
class PoolConfig:
    """Engines behind one FIFO.

    `device`: cpu (cores), cuda (the model itself), or a folder with a device's profile; several
    folders, comma-separated, for engines of different kinds.
    """

    name: str
    engines: int
    device: str = CPU

    @property
    def on_cores(self) -> bool:
        """Whether its engines run on this machine's cores."""
        return self.device == CPU

    @property
    def gives_scores(self) -> bool:
        """Whether its engines score items; a device that is only modelled takes the time alone."""
        return self.device in (CPU, CUDA)

    @property
    def devices(self) -> list[str]:
        """The device of each engine."""
        names = [name.strip() for name in self.device.split(",")]
        return [names[i % len(names)] for i in range(self.engines)]


@dataclass(frozen=True)
class StageConfig:
    """One stage: a model, whose engines serve it, and how many of the best items go on.

    `batch_items`: items of its largest task; None: the run's policy on cores, whole queries on a
    device. `checkpoint`: trained weights under the net's blob names (.npz); empty: drawn from the
    seed. `profile`: its times in virtual time (.csv of accelerator/profiler.py); empty: as
    --service_profile or the device says.
    """

    model: ModelConfig
    pool: str
    keep_items: int | None = None
    batch_items: int | None = None
    checkpoint: str = ""
    profile: str = ""


@dataclass(frozen=True)
class PipelineConfig:
    """What a pipeline's file states.

    `n_items`: candidates of every query, where it says how many; `queries`: the candidates
    themselves (.npz).
    """

    name: str
    stages: tuple[StageConfig, ...]
    pools: tuple[PoolConfig, ...]
    n_items: int | None = None
    queries: str = ""

    def as_json(self) -> dict[str, Any]:
        """What run.json holds under `pipeline`, with the fingerprint."""
        return {**dataclasses.asdict(self), "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the stages and with any file that they read."""
        paths = ("checkpoint", "profile")
        stages = [dataclasses.replace(stage, checkpoint="", profile="") for stage in self.stages]
        digest = hashlib.sha256(repr((stages, self.pools, self.n_items)).encode())
        files = [getattr(stage, name) for stage in self.stages for name in paths]
        for file in [self.queries, *files]:
            digest.update(hashlib.sha256(Path(file).read_bytes() if file else b"").digest())
        return digest.hexdigest()[:16]


def read_pipeline(path: str, n_engines: int) -> PipelineConfig:
    """The pipeline in a YAML file; `n_engines` serve the stages that name no engines.

    Paths in it are relative to its folder. Raises ConfigError.
    """
    file = Path(path)
    top = _mapping(path, _loaded(file, path), FILE_KEYS)
    listed = top.get("stages")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_STAGES:
        raise _wrong(path, f"needs 'stages', a list of 1 to {MOST_STAGES}")
    pools = _shared_pools(path, top.get("pools"))
    stages = []
    for number, facts in enumerate(listed):
        where = f"{path}: stage {number}"
        reader = _StageReader(where, _mapping(where, facts, STAGE_KEYS), file.parent)
        pool = reader.pool(pools, n_engines, number)
        pools[pool.name] = pool
        stages.append(reader.stage(pool))
    n_items = _count(path, "items", top.get("items"))
    _check_items(path, stages, [facts.get("items") for facts in listed], n_items)
    used = [pool for pool in pools.values() if any(stage.pool == pool.name for stage in stages)]
    unused = sorted(pools.keys() - {pool.name for pool in used})
    if unused:
        raise _wrong(path, f"pool {unused[0]!r} serves no stage")
    queries = str(top.get("queries") or "")
    return PipelineConfig(
        str(top.get("name") or file.stem),
        tuple(stages),
        tuple(used),
        n_items if n_items is not None else _count(path, "items", listed[0].get("items")),
        str(_beside(f"{path}: queries", file.parent, queries)) if queries else "",
    )


def _loaded(file: Path, path: str) -> Any:
    try:
        return yaml.safe_load(file.read_text())
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise _wrong(path, f"not readable as YAML: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class _StageReader:
    """What the file states of one stage; `where` begins every error."""

    where: str
    facts: Mapping[str, Any]
    folder: Path

    def pool(self, pools: Mapping[str, PoolConfig], n_engines: int, number: int) -> PoolConfig:
        """A pool that the file names, engines for this stage alone, or the cores of all."""
        named = self.facts.get("pool")
        alone = "engines" in self.facts or "device" in self.facts
        if named is not None and alone:
            raise _wrong(self.where, "names a pool and engines or a device of its own; give one")
        if named is not None and (not isinstance(named, str) or named not in pools):
            listed = ", ".join(pools) or "none there"
            raise _wrong(self.where, f"pool {named!r} is not under 'pools' ({listed})")
        if named is not None:
            return pools[named]
        if alone:
            return _pool(self.where, f"stage{number}", self.facts)
        return PoolConfig(CPU, n_engines)

    def stage(self, pool: PoolConfig) -> StageConfig:
        """The stage, served by that pool."""
        files = {
            key: str(_beside(f"{self.where}: {key}", self.folder, str(self.facts[key])))
            for key in ("checkpoint", "profile")
            if self.facts.get(key)
        }
        keep, batch = (
            _count(self.where, key, self.facts.get(key)) for key in ("keep_items", "batch_items")
        )
        return StageConfig(self._model(), pool.name, keep, batch, **files)

    def _model(self) -> ModelConfig:
        """The model of a name in models/configs, or of a file, with the stage's settings on top."""
        name = self.facts.get("model")
        if not isinstance(name, str):
            raise _wrong(
                self.where, "needs 'model', a name in models/configs or a model's JSON file"
            )
        shipped = {
            str(read_file(str(file))["model_name"]): file for file in sorted(CONFIGS.glob("*.json"))
        }
        file = shipped.get(name, self.folder / name)
        if not file.is_file():
            names = ", ".join(shipped)
            raise _wrong(
                self.where, f"model {name!r} is none of {names} and no file beside the pipeline"
            )
        try:
            model = ModelConfig(**self._model_settings(file))
        except ConfigError as error:
            if error.flag == "pipeline":
                raise
            raise _wrong(self.where, f"model {name!r}: {error}") from error
        except ValueError as error:
            raise _wrong(self.where, str(error)) from error
        return model if model.model_name else dataclasses.replace(model, model_name=Path(name).stem)

    def _model_settings(self, file: Path) -> dict[str, Any]:
        stated = _mapping(f"{self.where}: settings", self.facts.get("settings") or {}, MODEL_KEYS)
        in_file = {key: value for key, value in read_file(str(file)).items() if key in MODEL_KEYS}
        return in_file | {key: convert(key, value) for key, value in stated.items()}


def _shared_pools(path: str, listed: Any) -> dict[str, PoolConfig]:
    pools = {}
    for name, facts in _mapping(path, listed or {}, None).items():
        where = f"{path}: pool {name!r}"
        if re.fullmatch(rf"{CPU}|{ACCEL}|stage\d+", str(name)):
            raise _wrong(
                where, "has a name that is given to others: cpu, accel, stage0, ...; choose another"
            )
        pools[str(name)] = _pool(where, str(name), _mapping(where, facts or {}, POOL_KEYS))
    return pools


def _pool(where: str, name: str, facts: Mapping[str, Any]) -> PoolConfig:
    engines = _count(where, "engines", facts.get("engines", 1)) or 1
    pool = PoolConfig(name, engines, str(facts.get("device", CPU)))
    if pool.device == CUDA and engines != 1:
        raise _wrong(where, f"engines is {engines}; a CUDA device has one")
    return pool


def _check_items(
    path: str, stages: Sequence[StageConfig], stated: Sequence[Any], n_items: int | None
) -> None:
    """What comes in is what the stage before keeps, and nobody keeps more."""
    coming: int | None = n_items
    for number, (stage, value) in enumerate(zip(stages, stated, strict=True)):
        where = f"{path}: stage {number}"
        items = _count(where, "items", value)
        if items is not None and coming is not None and items != coming:
            raise _wrong(where, f"items is {items}, but {coming} come in")
        coming = items if items is not None else coming
        keep = stage.keep_items
        if keep is not None and coming is not None and keep > coming:
            raise _wrong(where, f"keep_items is {keep}, but only {coming} come in")
        if number < len(stages) - 1 and keep is None:
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
