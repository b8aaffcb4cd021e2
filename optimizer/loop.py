"""The loop: ask, run, tell. It knows no science."""

from collections.abc import Callable

from optimizer.study import DriverStudy
from storage.records import Assignment, Outcome
from workers.pool import Pool


def search(
    study: DriverStudy,
    pool: Pool,
    seen: Callable[[Outcome], None],
    paused: Callable[[], bool] = lambda: False,
) -> None:
    """Run the study to its planned number of trials, or until it is paused and what was running is done.

    Every free worker is given work before anything else; while all are busy, one proposal more is drawn, so that
    the sampler's time is hidden behind theirs. There are no generations: nobody waits for a slow trial.
    """
    ahead: Assignment | None = None
    running = 0
    while running or (not paused() and (ahead or study.wants_more())):
        more = not paused()
        if more and ahead is None and study.wants_more():
            ahead = study.propose()
        if more and ahead is not None and pool.room:
            pool.submit(ahead)
            ahead, running = None, running + 1
        elif (running or ahead is not None) and not (more and ahead is None and study.wants_more()):
            # Also where nothing runs: a worker that shows that its merges are what they were has no room meanwhile.
            for outcome in pool.finished():
                study.record(outcome)
                seen(outcome)
                running -= 1
