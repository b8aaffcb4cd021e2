"""Follow a study and tell a tracker: what happened stands in the database, what was sent the tracker knows itself."""

import logging
from time import sleep

from optimizer.patience import patiently
from optimizer.tracking.story import Story, about, exports, tables
from optimizer.tracking.tracker import Tracker, TrackerError
from storage.store import Store

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0
_PAUSE_SECONDS = 30.0


def track(store: Store, name: str, tracker: Tracker) -> int:
    """Send everything that has happened in a study, and while it is driven what happens; returns how many trials.

    It may be stopped at any moment, and begun again.

    Raises: InputError where there is no such study; TrackerError where the tracker cannot be had at the beginning, or
        at the study's end.
    """
    story, telling = Story(store, name), _Telling(store, name, tracker)
    telling.begin()
    while True:
        # Asked first: whatever its driver kept before it let go is read below.
        ended = patiently(lambda: store.driver(name)) is None
        story.read()
        reached = telling.send(story)
        if ended:
            break
        sleep(_LOOK_SECONDS if reached else _PAUSE_SECONDS)
    if not reached:
        raise TrackerError(
            f"{tracker.title} is still out of reach, and {len(story.trials) - telling.sent} trials of {name} wait for "
            "it; the same command sends them when it is back."
        )
    tracker.finish(tables(store, name), exports(store, name))
    return len(story.trials)


class _Telling:
    """Sends what waits. When the tracker cannot be had, that is said once, and it is asked anew what it holds."""

    def __init__(self, store: Store, name: str, tracker: Tracker) -> None:
        self.sent = 0
        self._about = about(store, name)
        self._tracker = tracker
        self._out = False

    def begin(self) -> None:
        self._tracker.begin(self._about)

    def send(self, story: Story) -> bool:
        """Whether all of it could be sent."""
        try:
            if self._out:
                self.begin()
            for trial in story.trials[self.sent :]:
                self._tracker.log(trial)
                self.sent += 1
        except TrackerError as e:
            if not self._out:
                _log.warning("%s is out of reach; trials wait, the study goes on: %s", self._tracker.title, e)
            self._out = True
            return False
        if self._out:
            _log.warning("%s is back, and holds every trial", self._tracker.title)
        self._out = False
        return True
