"""A callback by which the sweep is asked to stop, once."""

from tests.end_to_end.stop_at import StopAt


class StopFirst(StopAt):
    """Of the point 0 alone: the members of a population come to the step one after the other."""

    def __call__(self, trainer):
        return super().__call__(trainer) if trainer.run_dir.name.startswith("0_") else {}
