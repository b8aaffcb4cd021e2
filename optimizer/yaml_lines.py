"""YAML with the line of every key: plain data only, no tags, no aliases, no key twice."""

from typing import Any

import yaml

from search_spaces.errors import InputError

Path = tuple[str | int, ...]

_DEPTH = 32
_TEXT = "tag:yaml.org,2002:str"


def load(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """The document and the line of each of its places.

    Raises: InputError with file name and line for what is no plain YAML: tags, aliases (a few lines of them can stand
        for gigabytes), keys that are no texts or stand twice, nesting deeper than 32, numbers and dates that are none.
    """
    try:
        _check_events(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Path, int] = {}
        if root is not None:
            _walk(root, (), lines, name)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise InputError(f"{name}, line {line}: a study file must be plain YAML, but {_reason(e)}.") from e
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, LookupError) as e:
        # The parser passes on what Python says to 2024-13-45, 0x_, a number of 5,000 digits or "\\UFFFFFFFF".
        raise InputError(f"{name}: a study file must be plain YAML, but {' '.join(str(e).split())}.") from e


def _check_events(text: str, name: str) -> None:
    """What the stream of events alone shows, before anything is built of it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = f"{name}, line {event.start_mark.line + 1 if event.start_mark else 1}"
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{place}: a study file takes no aliases, but there is *{event.anchor}.")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise InputError(f"{place}: a study file must be plain YAML, but there is the tag {str(tag)[:100]}.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise InputError(f"{place}: a study file must not be nested deeper than {_DEPTH}, but it is.")


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], name: str) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _walk(child, (*path, i), lines, name)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT:
                raise InputError(f"{name}, line {line}: a key must be a text, but there is {_shown(key)}.")
            if key.value in seen:
                raise InputError(f"{name}, line {line}: a key must stand once, but {key.value} stands twice.")
            seen.add(key.value)
            _walk(child, (*path, key.value), lines, name)
            lines[*path, key.value] = line


def _shown(key: yaml.Node) -> str:
    return f"{str(key.value)[:100]} (put it in quotes)" if isinstance(key, yaml.ScalarNode) else "a list or a mapping"


def _reason(error: yaml.MarkedYAMLError) -> str:
    return (error.problem or error.context or "it is not").removeprefix("but ")
