"""A chat template is a program of whoever made the model: it is tried out in a process that can be ended.

transformers renders templates in Jinja's sandbox, which keeps them from Python's insides. What the sandbox does not
limit is time and memory: two nested loops over ``range(100000)`` or one ``9 ** 9 ** 9`` never end.
"""

import resource
import warnings
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from workers.prompts import prompt_text
from workers.suites import Prompt

SECONDS = 10.0
"""For all prompts together, and a hundredth of a second more for each: some hundred times what templates take."""

MOST_CHARACTERS = 1 << 24
_MEMORY = 1 << 30


def template_problem(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Prompt], seconds: float | None = None
) -> str | None:
    """What is wrong with how the tokenizer's chat template renders these prompts, in words; None where nothing is."""
    if not chats:
        return None
    fork = get_context("fork")  # the tokenizer goes along as it is; the child runs Python alone, no thread of torch
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_render, args=(tokenizer, chats, sender), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks where threads run
        child.start()
    sender.close()
    limit = (SECONDS if seconds is None else seconds) + len(chats) / 100
    try:
        if not receiver.poll(limit):
            return f"a chat template must render {len(chats)} prompts in {limit:.0f} s, but the base's does not end."
        found: str | None = receiver.recv()
    except EOFError:
        return "a chat template must render every prompt, but the process that tried the base's was ended."
    finally:
        child.kill()
        child.join()
        receiver.close()
    return found


def _render(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Prompt], sender: Connection) -> None:
    """In the child: say what is wrong with the first prompt that does not render, or None."""
    _limit_memory()
    try:
        for chat in chats:
            if len(prompt_text(tokenizer, chat)[0]) > MOST_CHARACTERS:
                raise MemoryError
    except InputError as e:
        sender.send(str(e))
    except MemoryError:
        sender.send("a chat template must render a prompt in a gigabyte, but the base's takes more.")
    else:
        sender.send(None)


def _limit_memory() -> None:
    """A gigabyte beyond what the process has, where the system says how much that is."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
