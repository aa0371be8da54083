"""The same M/M/c in other simulators; each returns the customers' times in the system in ms."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def simpy_mmc(arrival_ms: FloatArray, service_ms: FloatArray, n_servers: int) -> FloatArray:
    """SimPy: a process per customer, a Resource of `n_servers`."""
    import simpy  # noqa: PLC0415 (optional: build/bench_requirements.txt)

    env = simpy.Environment()
    servers = simpy.Resource(env, n_servers)
    in_system = np.zeros(len(arrival_ms))

    def customer(i: int, service: float) -> Generator[Any, Any, None]:
        arrived = env.now
        with servers.request() as request:
            yield request
            yield env.timeout(service)
        in_system[i] = env.now - arrived

    def source() -> Generator[Any, Any, None]:
        for i, (at, service) in enumerate(
            zip(arrival_ms.tolist(), service_ms.tolist(), strict=True)
        ):
            yield env.timeout(at - env.now)
            env.process(customer(i, service))

    env.process(source())
    env.run()
    return in_system


def ciw_mmc(arrival_ms: FloatArray, service_ms: FloatArray, n_servers: int) -> FloatArray:
    """Ciw: a network of one node, the same arrivals and services in sequence."""
    import ciw  # noqa: PLC0415 (optional: build/bench_requirements.txt)

    gaps = np.diff(arrival_ms, prepend=0.0).tolist()
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Sequential([*gaps, float("inf")])],
        service_distributions=[ciw.dists.Sequential(service_ms.tolist())],
        number_of_servers=[n_servers],
    )
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_customers(len(arrival_ms), method="Finish")
    records = sorted(simulation.get_all_records(), key=lambda record: record.arrival_date)
    return np.array([record.exit_date - record.arrival_date for record in records])
