import os

import pytest

from optimizer.progress import watching


def test_what_libraries_print_while_a_study_runs_does_not_reach_machines(capfd: pytest.CaptureFixture[str]) -> None:
    with watching() as watcher:
        watcher.stage("trials", 0, 2)
        print("(raylet) a worker died")
    print("[]")
    told = capfd.readouterr()
    assert told.out == "[]" + os.linesep
    assert "(raylet) a worker died" in told.err
    assert "trials: 0 of 2" in told.err
