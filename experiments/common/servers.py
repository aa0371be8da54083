"""The servers and loads that several studies simulate, and a Poisson load of one-task queries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from accelerator.devices import ROOT, derived_profile, latency_profile, load_device, model_configs
from accelerator.latency import Profile
from accelerator.service import ServiceTable, table_of_profiles
from backends.tuning.probe import Sla, probe
from backends.virtual.simulated import SimulatedSession
from infra.load.arrivals import draw_gaps_ns
from infra.rng import stream
from infra.settings.cli import parse
from infra.settings.config import LoadConfig, ModelConfig, RunConfig
from loadGenerator import CommonLoad, Schedule
from scheduler import Limit, Search

MEDIUM_SLA_MS = {
    "rm1": 100,
    "rm2": 400,
    "rm3": 100,
    "ncf": 5,
    "wnd": 25,
    "mtwnd": 25,
    "din": 100,
    "dien": 35,
}
SLA_SHARES = {"low": 0.5, "medium": 1.0, "high": 1.5}  # of the medium one (ISCA 2020)
N_ENGINES = 40  # cores of the paper's server
LARGEST = 1000  # items of a query, as in the paper
SECONDS = 1.5  # of a run with engines that do nothing
ROUNDS = 3


def ladder(steps: int) -> list[int]:
    """1 to LARGEST, `steps` per doubling."""
    return sorted({round(2 ** (i / steps)) for i in range(10 * steps)} | {LARGEST})


@dataclass(frozen=True)
class Server:
    """A simulated server: cores, `slower` times as slow as the measured one, and an accelerator."""

    n_engines: int = N_ENGINES
    device: str = "nvidia_gtx_1080_ti"
    slower: float = 1.0


def net_config(model: str) -> ModelConfig:
    """The released configuration of a model."""
    return parse(["--config_file", str(model_configs()[model]), "--num_batches", "1"]).model


def core_beside_neighbour(model: str) -> Profile:
    """Service times of a measured core beside a busy neighbour, with their spread."""
    measured = latency_profile(load_device(ROOT, "amd_epyc_zen4"), net_config(model))
    return Profile(measured.busy_ms[1], measured.provenance, spread=measured.spread)


def service_table(model: str, server: Server = Server()) -> ServiceTable:
    """Service times of a core beside a busy neighbour, with their spread, and of the accelerator.

    A published speedup is over the core as measured, so a slower CPU does not slow the card.
    """
    beside = core_beside_neighbour(model)
    device = load_device(ROOT, server.device)
    if device.kind == "speedup":
        card = derived_profile(device, model, beside)
    else:
        card = latency_profile(device, net_config(model))
    table = table_of_profiles(beside, [card], LARGEST, seed=11)
    return replace(table, cpu_ns=np.rint(table.cpu_ns * server.slower).astype(np.int64))


def load_config() -> RunConfig:
    """Production query sizes up to the paper's 1,000 items, Poisson arrivals."""
    words = f"--queue --num_batches 32 --max_mini_batch_size {LARGEST} --arrival_qps 1"
    return parse([*words.split(), "--batch_size_distribution", "production"])


def best_of(search: Search, session: SimulatedSession, load: CommonLoad, sla: Sla) -> Limit:
    """Run a search to its end in virtual time, all trials on one load."""
    while (trial := search.propose()) is not None:
        probed = probe(session, load, sla, trial)
        assert probed is not None, "virtual time is not interrupted"
        search.observe(probed.outcome)
    assert search.best is not None, "a search ends with a policy"
    return search.best


def schedule_at(rate_qps: float, seed: int, seconds: float = SECONDS) -> Schedule:
    """Poisson arrivals of one-task queries."""
    n = max(round(rate_qps * seconds), 100)
    gaps_ns = draw_gaps_ns(LoadConfig(), rate_qps, n, stream(seed, "arrivals"))
    return Schedule(np.cumsum(gaps_ns), np.full(n, 16, np.int32), np.zeros(n, np.int32))
