"""``python -m examples.papers``: replays run in processes of their own, which must be able to import what they run."""

import sys

from examples.papers.command import main
from search_spaces.errors import InputError

if __name__ == "__main__":
    try:
        main()
    except InputError as e:
        sys.exit(str(e))
