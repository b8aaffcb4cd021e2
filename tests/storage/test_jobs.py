"""Jobs, on both databases: who may begin one, who is at it, how it ended."""

import subprocess
import sys

import pytest
import sqlalchemy as sa

from storage.errors import StoreError
from storage.jobs import DIED, PAUSED, Jobs
from storage.lease import Holder
from storage.store import Store


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return store.jobs


def test_a_job_goes_from_waiting_to_running_to_ended(jobs: Jobs) -> None:
    job = jobs.add("a", "launch", {"trials": 3}, "me")
    assert [j.key for j in jobs.waiting()] == [job.key]
    claimed = jobs.claim(job.key, Holder.me())
    assert claimed is not None
    assert (claimed.stage, claimed.process) == ("running", Holder.me().pid)
    assert (jobs.waiting(), [j.key for j in jobs.running()]) == ([], [job.key])
    jobs.report(job.key, "trials", 1, 3)
    assert jobs.get(job.key).progress == {"stage": "trials", "done": 1, "total": 3}
    assert jobs.end(job.key, 0, "")
    assert not jobs.end(job.key, 1, "too late"), "a job ends once"
    assert (jobs.get(job.key).stage, jobs.get(job.key).code) == ("ended", 0)
    assert jobs.running() == []


def test_a_job_is_begun_by_one(jobs: Jobs) -> None:
    job = jobs.add("a", "launch", {}, "me")
    assert jobs.claim(job.key, Holder.me()) is not None
    assert jobs.claim(job.key, Holder.me()) is None
    assert not jobs.withdraw(job.key), "what has begun is not withdrawn"


def test_a_study_has_one_drivers_job_at_a_time_and_any_number_of_exports(jobs: Jobs) -> None:
    first = jobs.add("a", "launch", {}, "me")
    with pytest.raises(StoreError, match="a is queued or running already"):
        jobs.add("a", "resume", {}, "me")
    jobs.add("b", "launch", {}, "me")
    jobs.add("a", "export", {}, "me")
    jobs.add("a", "export", {}, "me")
    jobs.end(first.key, 0, "")
    assert jobs.add("a", "resume", {}, "me").kind == "resume"
    assert jobs.latest()["a"].kind == "resume"
    assert len(jobs.exports("a")) == 2


def test_a_withdrawn_job_is_paused_and_cannot_be_begun(jobs: Jobs) -> None:
    job = jobs.add("a", "launch", {}, "me")
    assert jobs.withdraw(job.key)
    assert (jobs.get(job.key).code, jobs.claim(job.key, Holder.me())) == (PAUSED, None)


def test_a_job_whose_process_is_gone_has_ended_and_the_study_is_free(jobs: Jobs) -> None:
    code = "from storage.lease import Holder; h = Holder.me(); print(h, h.token)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    job = jobs.add("a", "launch", {}, "me")
    jobs.claim(job.key, Holder.parse(said[0], said[1]))
    found = jobs.get(job.key)
    assert (found.stage, found.code, found.message) == ("ended", 1, DIED)
    assert jobs.running() == []
    jobs.add("a", "launch", {}, "me")


def test_a_job_on_another_machine_ends_when_it_is_silent_for_a_minute(jobs: Jobs, store: Store) -> None:
    elsewhere = Holder(host="elsewhere", pid=1, started=1.0)
    job = jobs.add("a", "launch", {}, "me")
    jobs.claim(job.key, elsewhere)
    assert (jobs.get(job.key).stage, jobs.get(job.key).process) == ("running", None)
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE mergefront_job SET held_until = held_until - 61"))
    assert jobs.get(job.key).stage == "ended"
    jobs.renew(job.key, elsewhere)
    assert jobs.get(job.key).stage == "running", "a sign of life"


def test_a_process_that_nobody_has_waited_for_is_dead(jobs: Jobs) -> None:
    """A child that was killed stays in the system's table until its parent asks for it."""
    import psutil

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        holder = Holder(host=Holder.me().host, pid=child.pid, started=psutil.Process(child.pid).create_time())
        assert not holder.dead
        child.kill()
        psutil.wait_procs([], timeout=0)
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        assert holder.dead
