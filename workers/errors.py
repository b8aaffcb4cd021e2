"""Errors of one trial. Each becomes a failed trial with its message as the reason; the study goes on."""


class TrialError(Exception):
    """A trial that cannot be measured."""


class MergeError(TrialError):
    """A merge that cannot be built."""


class EngineError(TrialError):
    """An engine whose answers cannot be used."""


class EngineDied(Exception):  # noqa: N818 (it says what happened)
    """An engine that cannot go on, its weights in nobody knows which state: its whole worker has to be replaced."""
