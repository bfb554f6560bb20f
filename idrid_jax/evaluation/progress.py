"""Progress of a command that has stages."""

from collections.abc import Callable

Progress = Callable[[str, int], None]  # (the current stage, the number of stages)


def stage_logger(on_progress: Progress, num_stages: int) -> Callable[[str], None]:
    """Return a function that reports the stage of a text as one of `num_stages`."""

    def log(text: str) -> None:
        on_progress(text, num_stages)

    return log
