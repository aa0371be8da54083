"""A run's settings: frozen dataclasses whose fields carry the flags' names.

A field is a flag (`--name`), a key of a configuration file and a key of a run's saved
configuration, so there is one list of settings and no translation. Units stand in each field's help
text. What cannot be used is refused where it is built, with the flag to change (ConfigError).
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Everyone gets these two from here.
from infra.settings.fields import ConfigError as ConfigError  # noqa: PLC0414 (exported)
from infra.settings.fields import check_fields, dashed, flag
from infra.settings.model_config import ModelConfig as ModelConfig  # noqa: PLC0414 (exported)

_ARRIVALS = ("exponential", "legacy", "constant", "gamma", "mmpp", "diurnal", "file", "trace")
_ARRIVALS_FROM_FILES = ("file", "trace", "diurnal")
_SIZES = ("fixed", "normal", "lognormal", "file", "production", "mlperf", "trace")


@dataclass(frozen=True)
class InputConfig:
    """Generated inputs."""

    num_batches: int = flag(0, "number of distinct inputs; queries = nepochs x num_batches", low=0)
    nepochs: int = flag(1, "passes over the inputs", low=1)
    mini_batch_size: int = flag(1, "standalone: items per batch", low=1)
    max_mini_batch_size: int = flag(1, "items of a generated input; the largest query", low=1)
    data_generation: str = flag(
        "random",
        "where ids come from: random = uniform, synthetic = stack distances",
        ("random", "zipf", "synthetic", "dataset"),
    )
    zipf_alpha: float = flag(
        1.05, "zipf: the row of rank k is as likely as k^-alpha", low=0, high=10
    )
    data_trace_file: str = flag(
        "./input/dist_emb_j.log", "synthetic: a table's stack distances; j = its number"
    )
    data_trace_enable_padding: bool = flag(
        False, "synthetic: distances not yet possible are drawn anew, as released"
    )
    data_set: str = flag(
        "kaggle", "dataset: Criteo's click logs, or MovieLens-style", ("kaggle", "movielens")
    )
    raw_data_file: str = flag(
        "", "dataset: the click logs' file, or the interactions' file or folder"
    )
    data_randomize: str = flag(
        "total", "dataset: order of the samples; day = by sevenths", ("total", "day", "none")
    )
    numpy_rand_seed: int = flag(123, "seed of every random stream of the run", low=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mini_batch_size > self.max_mini_batch_size:
            raise ConfigError(
                "mini_batch_size",
                f"is {self.mini_batch_size}, larger than max_mini_batch_size, "
                f"{self.max_mini_batch_size}",
            )
        if self.data_generation == "dataset" and not self.raw_data_file:
            raise ConfigError("raw_data_file", "is not set; data_generation dataset reads it")


@dataclass(frozen=True)
class LoadConfig:
    """Load: arrivals and query sizes."""

    arrival_process: str = flag(
        "exponential", "law of the gaps; legacy = the release's whole-ms draws", _ARRIVALS
    )
    avg_arrival_rate: float = flag(
        10.0, "mean GAP between queries in ms (not a rate: the released name)", above=0
    )
    arrival_qps: float | None = flag(
        None, "arrivals per second, an alternative to the gap", above=0
    )
    offered_load: float | None = flag(
        None,
        "offered rate as a fraction of the capacity measured first, an alternative to both",
        above=0,
        high=10,
    )
    arrival_gamma_shape: float = flag(
        0.5, "gamma gaps: shape k; squared coefficient of variation = 1/k", above=0
    )
    arrival_burst_factor: float = flag(
        10.0, "mmpp: rate within a burst over the rate outside", low=1
    )
    arrival_burst_share: float = flag(
        0.1, "mmpp: share of the time that bursts take", low=0.001, high=0.999
    )
    arrival_burst_s: float = flag(1.0, "mmpp: mean length of a burst in s", above=0)
    arrival_file: str = flag(
        "",
        "file: one arrival time in ms a line; trace: table with arrival_ns, _ms or _s (and "
        "n_items); diurnal: table with time_s and rate, scaled to the run's mean rate, linear "
        "between, repeated",
    )
    arrival_time_scale: float = flag(
        1.0, "trace, diurnal: factor on all times (0.5 = twice as fast)", above=0
    )
    batch_size_distribution: str = flag("fixed", "law of the query sizes", _SIZES)
    avg_mini_batch_size: float = flag(1.0, "mean query size in items (lognormal: mean of the log)")
    var_mini_batch_size: float = flag(
        1.0, "standard deviation of the size (lognormal: of the log)", low=0
    )
    batch_dist_file: str = flag(
        "config/batch_distribution.txt", "sizes, one a line, drawn uniformly"
    )
    warmup_queries: int | None = flag(
        None, "first queries left out of the statistics (None: a tenth, <= 200)", low=0
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.arrival_qps is not None and self.avg_arrival_rate != LoadConfig.avg_arrival_rate:
            raise ConfigError("arrival_qps", "and avg_arrival_rate are both set; give one")
        if self.arrival_qps is not None and self.offered_load is not None:
            raise ConfigError("offered_load", "and arrival_qps are both set; give one")
        if self.arrival_process in _ARRIVALS_FROM_FILES and not self.arrival_file:
            raise ConfigError(
                "arrival_file", f"is not set; arrival_process {self.arrival_process} reads it"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        law = self.batch_size_distribution
        if law == "trace" and self.arrival_process != "trace":
            raise ConfigError(
                "batch_size_distribution", "is trace, which needs arrival_process trace"
            )
        if law in ("fixed", "normal") and self.avg_mini_batch_size < 1:
            raise ConfigError(
                "avg_mini_batch_size", f"is {self.avg_mini_batch_size:g}; expected at least 1 item"
            )

    @property
    def rate_qps(self) -> float:
        """Mean arrivals per second."""
        return self.arrival_qps if self.arrival_qps is not None else 1000.0 / self.avg_arrival_rate


@dataclass(frozen=True)
class EngineConfig:
    """Engines."""

    queue: bool = flag(
        False,
        "at-scale mode (load generator and engines); without it: a standalone run of one model",
    )
    backend: str = flag(
        "process",
        "where engines live: processes on this machine, or service times in virtual time",
        ("process", "simulated"),
    )
    inference_engines: int = flag(1, "CPU engine processes; 0 or auto = one per core", low=0)
    sub_task_batch_size: int = flag(16, "per-core batch: items of the largest CPU task", low=1)
    fc_workers: int = flag(1, "threads of an engine (the larger of this and sls_workers)", low=1)
    sls_workers: int = flag(1, "threads of an engine (the larger of this and fc_workers)", low=1)
    pipeline: str = flag(
        "",
        "YAML of stages with models, items kept and engines of their own (README); no model flag",
    )
    pin_cores: bool = flag(False, "pin CPU engine i to core i modulo cores")
    engine_timeout: float = flag(
        120.0, "seconds an engine may take to say that it is ready", low=0.1
    )
    model_accel: bool = flag(False, "add an accelerator engine")
    accel_device: str = flag(
        "nvidia_gtx_1080_ti",
        "folders under accel_root_dir, comma-separated, or cuda: the model on this GPU",
    )
    accel_request_size_thres: int = flag(
        1024, "offload threshold: queries of at least this many items go whole", low=1
    )
    accel_merge_mib: float = flag(
        0.0, "accel_device cuda: waiting queries become one batch up to so many MiB", low=0
    )
    accel_root_dir: str = flag("accelerator/", "where device profiles lie")
    renew_profile: bool = flag(
        False, "measure this machine's CPU time by batch size anew, though a profile was kept"
    )
    quiet_check: float = flag(
        1.0,
        "seconds for which the machine is watched before the load, to name who else uses the "
        "cores (0: not; backend process)",
        low=0,
        high=60,
    )
    use_accel: bool = flag(False, "standalone: run the model on the GPU")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def accel_devices(self) -> tuple[str, ...]:
        """Names of the accelerators, one engine each."""
        return tuple(name.strip() for name in self.accel_device.split(","))

    @property
    def n_threads(self) -> int:
        """Threads of one engine."""
        return max(self.fc_workers, self.sls_workers)


@dataclass(frozen=True)
class SimulationConfig:
    """Virtual time (backend simulated)."""

    service_law: str = flag(
        "profile",
        "service times: a measured profile, a real run's own, or a law for checks against theory",
        ("profile", "replay", "exponential", "deterministic", "lognormal"),
    )
    service_profile: str = flag(
        "amd_epyc_zen4",
        "profile: folder under accel_root_dir, or a CSV of profiler.py; replay: folder of a run",
    )
    service_mean_ms: float = flag(1.0, "laws: mean time of a task, whatever its size", above=0)
    service_cv: float = flag(1.0, "lognormal: coefficient of variation", above=0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TuneConfig:
    """Scheduler (DeepRecSched)."""

    target_latency: float = flag(10.0, "SLA in ms on the percentile of sla_percentile", above=0)
    sla_percentile: float = flag(
        95.0, "percentile of the latency that the SLA bounds", low=50, high=99.9
    )
    tune_batch_qps: bool = flag(False, "tune the per-core batch for the highest rate under the SLA")
    tune_accel_qps: bool = flag(False, "then tune the offload threshold (needs model_accel)")
    scheduler: str = flag(
        "hill",
        "how policies are searched: guided = in virtual time, then confirmed in at most 3 trials; "
        "static = baseline only, exhaustive = the oracle, released = as the release",
        ("hill", "guided", "released", "static", "exhaustive"),
    )
    objective: str = flag("qps", "what is highest under the SLA", ("qps", "qps_per_watt"))
    cpu_watts: float | None = flag(
        None,
        "power of all CPU engines together in W, where no counter can be read",
        unit="W",
        above=0,
    )
    confidence: float = flag(0.99, "confidence of a verdict on one rate", low=0.5, high=0.9999)
    rate_width: float = flag(
        0.05, "relative width to which a rate under the SLA is found", low=0.001, high=1
    )
    probe_queries: int = flag(
        0, "queries after which one rate is undecided (0: nepochs x num_batches)", low=0
    )
    batch_configs: str = flag(
        "32-64-128-256-512-1024", "per-core batches to choose from; released: in this order"
    )
    accel_configs: str = flag(
        "128-256-512", "offload thresholds to choose from; released: in this order"
    )
    req_granularity: int = flag(64, "scheduler released: queries per update", low=8)
    stable_region: float = flag(
        0.10,
        "released: dead band under the SLA within which the rate is held, fraction",
        low=0,
        below=1,
    )
    max_arr_range: float = flag(100.0, "released: largest gap tried, ms", above=0)
    min_arr_range: float = flag(1.0, "released: smallest gap tried, ms", above=0)
    arr_steps: int = flag(20, "released: log-spaced gaps between the two", low=2)
    sched_timeout: int = flag(100, "released: updates per configuration at most", low=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.min_arr_range >= self.max_arr_range:
            raise ConfigError(
                "min_arr_range",
                f"is {self.min_arr_range:g}; expected less than max_arr_range, "
                f"{self.max_arr_range:g}",
            )
        dashed("batch_configs", self.batch_configs)
        dashed("accel_configs", self.accel_configs)


@dataclass(frozen=True)
class OutputConfig:
    """Output."""

    results_dir: str = flag(
        "results", "folder that gets one folder per run: run.json, *.parquet, figures"
    )
    resume: str = flag(
        "", "run id below results_dir of a search to go on with, under the settings saved there"
    )
    log_file: str = flag("log/output.log", "one line per task (empty: none)")
    progress: str = flag(
        "auto", "auto: a bar on a terminal, else nothing; plain: lines", ("auto", "plain", "none")
    )
    enable_profiling: bool = flag(False, "standalone: print the time by operator")
    debug_mode: bool = flag(False, "log what happens inside")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ReleaseOnlyConfig:
    """Flags of the release that have no effect here (accepted, so that its scripts run)."""

    inference_only: bool = flag(True, "there is no training")
    inter_op_workers: int = flag(1, "operators run one after the other")
    caffe2_net_type: str = flag("simple", "Caffe2 executor")
    engine: str = flag("TBB", "Caffe2 operator engine")
    save_proto_types_shapes: bool = flag(False, "Caffe2 only")
    plot_compute_graph: bool = flag(False, "Caffe2 only")
    output_log_file: str | None = flag(None, "Caffe2 only")
    processed_data_file: str = flag("", "the raw file is read each time")
    activation_function: str = flag("relu", "the nets fix their activations")
    loss_function: str = flag("mse", "training only")
    loss_threshold: float = flag(0.0, "training only")
    round_targets: bool = flag(False, "training only")
    learning_rate: float = flag(0.01, "training only")
    sync_dense_params: bool = flag(True, "training only")
    print_precision: int = flag(5, "training only")
    print_freq: int = flag(1, "training only")
    print_time: bool = flag(False, "times are always printed")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen, as the others are)
    inputs: InputConfig = InputConfig()
    load: LoadConfig = LoadConfig()
    engines: EngineConfig = EngineConfig()
    simulation: SimulationConfig = SimulationConfig()
    tune: TuneConfig = TuneConfig()
    output: OutputConfig = OutputConfig()
    release_only: ReleaseOnlyConfig = ReleaseOnlyConfig()

    def __post_init__(self) -> None:
        self._check_queries()
        self._check_tuning()
        if self.engines.pipeline and not self.is_at_scale:
            raise ConfigError("pipeline", "needs the at-scale mode; add queue")
        if self.engines.backend == "simulated":
            self._check_virtual_time()
            return
        for field in dataclasses.fields(self.simulation):
            if getattr(self.simulation, field.name) != field.default:
                raise ConfigError(field.name, "is read in virtual time only; add backend simulated")

    def _check_queries(self) -> None:
        # A resumed run has its settings on disk, a pipeline may have queries in a file.
        if self.inputs.num_batches < 1 and not (self.output.resume or self.engines.pipeline):
            raise ConfigError(
                "num_batches", "is 0; expected the number of distinct inputs, at least 1"
            )
        warmup_queries = self.load.warmup_queries
        if warmup_queries is not None and 0 < self.n_queries <= warmup_queries:
            raise ConfigError(
                "warmup_queries",
                f"is {warmup_queries}, but the run has {self.n_queries} queries in all",
            )

    def _check_tuning(self) -> None:
        if self.tune.tune_accel_qps and not self.engines.model_accel:
            raise ConfigError("tune_accel_qps", "needs an accelerator engine; add model_accel")
        if self.is_tuning and not self.engines.queue:
            knob = "tune_batch_qps" if self.tune.tune_batch_qps else "tune_accel_qps"
            raise ConfigError(knob, "needs the at-scale mode; add queue")
        process = self.load.arrival_process
        chooses_rate = self.is_tuning or self.load.offered_load is not None
        if chooses_rate and process in ("file", "trace"):
            raise ConfigError(
                "arrival_process",
                f"is {process}, which fixes the rate; tuning and offered_load choose it",
            )
        if self.is_tuning and process in ("mmpp", "diurnal"):
            raise ConfigError(
                "arrival_process",
                f"is {process}; a trial of a tuning run ends before the load has shown all its "
                "states",
            )

    def _check_virtual_time(self) -> None:
        if not self.is_at_scale:
            raise ConfigError(
                "backend", "is simulated, which knows the at-scale mode only; add queue"
            )
        if self.simulation.service_law == "replay" and self.is_tuning:
            raise ConfigError(
                "service_law",
                "is replay, which repeats one run's tasks; tuning needs a profile or a law",
            )
        if self.engines.model_accel and "cuda" in self.engines.accel_devices:
            raise ConfigError(
                "accel_device",
                "is cuda, which has no virtual time; name a device folder with a profile",
            )

    @property
    def name(self) -> str:
        """The pipeline's or the model's name, for reports and folders."""
        return Path(self.engines.pipeline).stem if self.engines.pipeline else self.model.name

    @property
    def is_at_scale(self) -> bool:
        """Whether the run has a load generator and engines; a resumed run has."""
        return self.engines.queue or bool(self.output.resume)

    @property
    def is_tuning(self) -> bool:
        """Whether the run searches for a policy; else it measures the one that its flags name."""
        return self.tune.tune_batch_qps or self.tune.tune_accel_qps

    @property
    def n_queries(self) -> int:
        """Queries of a measuring run, warm-up included."""
        return self.inputs.nepochs * self.inputs.num_batches

    @property
    def n_warmup(self) -> int:
        """First queries left out of the statistics."""
        chosen = self.load.warmup_queries
        return min(self.n_queries // 10, 200) if chosen is None else chosen

    @property
    def input_bytes(self) -> int:
        """Size of the pool of inputs in memory (ids int32, dense float32), at most."""
        n_ids = len(self.model.table_rows) * self.model.num_indices_per_lookup
        n_items = self.inputs.max_mini_batch_size * self.inputs.num_batches
        return 4 * (n_ids + self.model.dense_width) * n_items


PARTS: dict[str, type] = typing.get_type_hints(RunConfig)


def from_settings(settings: dict[str, Any]) -> RunConfig:
    """RunConfig from {flag: value}; what is missing has its default. Raises ConfigError."""
    parts = {}
    for name, part in PARTS.items():
        flags = [field.name for field in dataclasses.fields(part)]
        parts[name] = part(**{flag: settings[flag] for flag in flags if flag in settings})
    return RunConfig(**parts)


def to_settings(config: RunConfig) -> dict[str, Any]:
    """{flag: value} of every setting; `from_settings` is its inverse."""
    return {
        name: value
        for part in PARTS
        for name, value in dataclasses.asdict(getattr(config, part)).items()
    }
