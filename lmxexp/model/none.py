"""An empty slot."""


def none(*args: object, **kwargs: object) -> None:
    """Build nothing: the factory of a slot that stays empty, whatever it is called with."""
