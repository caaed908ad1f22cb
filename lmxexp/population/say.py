"""What the launcher tells of."""

import sys


def say(text: str) -> None:
    print(f"hydra/launcher=population: {text}", file=sys.stderr)
