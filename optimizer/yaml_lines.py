"""YAML with the line of every key: plain data only, no tags, no aliases, no key twice."""

from typing import Any

import yaml

from search_spaces.errors import InputError

Path = tuple[str | int, ...]


def load(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """The document and the line of each of its places.

    Raises: InputError with file name and line for what is no plain YAML.
    """
    try:
        _refuse_aliases(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Path, int] = {}
        if root is not None:
            _walk(root, (), lines, name)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise InputError(f"{name}, line {line}: a study file must be plain YAML, but {e.problem or e.context}.") from e
    except yaml.YAMLError as e:
        raise InputError(f"{name}: a study file must be plain YAML, but {e}.") from e


def _refuse_aliases(text: str, name: str) -> None:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) and event.start_mark is not None:
            line = event.start_mark.line + 1
            raise InputError(f"{name}, line {line}: a study file takes no aliases, but there is *{event.anchor}.")


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], name: str) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _walk(child, (*path, i), lines, name)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise InputError(f"{name}, line {line}: a key must stand once, but {key.value} stands twice.")
            seen.add(key.value)
            _walk(child, (*path, key.value), lines, name)
            lines[*path, key.value] = line
