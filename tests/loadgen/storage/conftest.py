"""A small database to measure on."""

from pathlib import Path

import pytest

from loadgen.storage.job import Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.prepare(tmp_path / "template.db", 4000)
