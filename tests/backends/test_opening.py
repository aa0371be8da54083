"""What happens between the engines' start and the load."""

import contextlib
import logging

import pytest
from helpers import TINY

from backends import opening
from infra.deployment import resolve
from infra.progress import Progress
from infra.settings.cli import parse


class FakeSession:
    """Engines that are there."""

    pids = (7, 8)


@pytest.mark.parametrize(("watch_s", "n_lines"), [("0", 0), ("2.5", 1)])
def test_the_machine_is_watched_once_the_engines_are_idle(monkeypatch, caplog, watch_s, n_lines):
    watched = []

    def check(seconds, pids):
        watched.append((seconds, pids))
        return "others use the cores" if seconds else ""

    started = contextlib.nullcontext(FakeSession())
    monkeypatch.setattr(opening, "pool_specs", lambda *_: ([], {}))
    monkeypatch.setattr(opening, "ProcessSession", lambda *_, **__: started)
    monkeypatch.setattr(opening, "quiet_check", check)
    deployment = resolve(parse([*TINY, "--quiet_check", watch_s]))
    with (
        caplog.at_level(logging.WARNING),
        opening.open_session(deployment, Progress("none")) as opened,
    ):
        assert opened.session.pids == (7, 8)
    assert watched == [(float(watch_s), (7, 8))]
    assert [record.getMessage() for record in caplog.records] == ["others use the cores"] * n_lines
