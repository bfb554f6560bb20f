"""Progress of a command that consists of stages of different lengths."""

import sys


class StageProgress:
    """Show the current stage on stderr: as a progress bar on a terminal, as one line per stage elsewhere.

    Call it at the beginning of each stage with the stage's name and the number of stages. As a context manager it
    clears the bar at the end, so that later output begins on a new line.
    """

    def __init__(self):
        self._begun, self._bar = 0, None

    def __call__(self, text: str, stages: int) -> None:
        self._begun += 1
        if not sys.stderr.isatty():
            print(f"[{self._begun}/{stages}] {text}", file=sys.stderr, flush=True)
            return
        if self._bar is None:
            from tqdm import tqdm

            layout = "{bar:20} {n_fmt}/{total_fmt} [{elapsed}] {desc}"
            self._bar = tqdm(total=stages, bar_format=layout, leave=False)
        self._bar.update(self._begun - 1 - self._bar.n)
        self._bar.set_description_str(text)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        """Clear the bar."""
        if self._bar is not None:
            self._bar.close()
