"""The one error that means *your input is wrong*: its message says the rule, then the values."""


class InputError(ValueError):
    """What the user gave cannot work; nothing was spent and nothing was lost (exit code 2)."""
