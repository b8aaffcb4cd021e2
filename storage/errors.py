"""Errors of what lies on disk."""

from search_spaces.errors import InputError


class CheckpointError(InputError):
    """A checkpoint cannot be read or cannot be merged."""


class StoreError(InputError):
    """A database or a study in it cannot be used as asked."""


class LeaseError(Exception):
    """Another driver has taken the study over; this one must not write any more."""
