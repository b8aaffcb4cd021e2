"""The loop: ask, run, tell. It knows no science."""

from collections import deque
from collections.abc import Callable

from optimizer.study import DriverStudy
from storage.records import Assignment, Outcome
from workers.pool import Pool

_WORKERS_A_PROPOSAL = 8
"""One proposal is drawn ahead for so many workers, and with fewer than twice as many still one at a time."""


def search(
    study: DriverStudy,
    pool: Pool,
    seen: Callable[[Outcome], None],
    paused: Callable[[], bool] = lambda: False,
) -> None:
    """Run the study to its planned number of trials, or until it is paused and what was running is done.

    Every free worker is given work before anything else; while all are busy, proposals are drawn ahead, so that
    the sampler's time is hidden behind theirs. There are no generations: nobody waits for a slow trial.
    """
    ahead: deque[Assignment] = deque()
    running = 0
    while running or (not paused() and (ahead or study.wants_more())):
        more = not paused()
        batch = max((running + pool.room) // _WORKERS_A_PROPOSAL, 1) if more else 0
        if more and ahead and pool.room:
            pool.submit(ahead.popleft())
            running += 1
        elif len(ahead) < batch and study.wants_more():
            ahead.extend(study.propose(batch - len(ahead)))
        elif running or ahead:
            # Also where nothing runs: a worker that shows that its merges are what they were has no room meanwhile.
            outcomes = pool.finished()
            study.record(outcomes)
            running -= len(outcomes)
            for outcome in outcomes:
                seen(outcome)
