"""Texts with ``{names}`` in them."""

import re
from collections.abc import Mapping

_PLACE = re.compile(r"\{([a-z_]+)\}")


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with each ``{name}`` that has a value replaced, all at once: what a value holds is left alone."""
    return _PLACE.sub(lambda m: values.get(m[1], m[0]), template)


def names_in(template: str) -> set[str]:
    """The names that stand in a template."""
    return set(_PLACE.findall(template))
