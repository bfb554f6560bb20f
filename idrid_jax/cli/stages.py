"""Progress of a command that has stages of unlike lengths."""

import sys


class Stages:
    """A bar on a terminal, elsewhere a line a stage, on stderr. Called with what begins, and of how many stages.

    Leaving it clears the bar, so that what is printed then begins a line.
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

            shape = "{bar:20} {n_fmt}/{total_fmt} [{elapsed}] {desc}"
            self._bar = tqdm(total=stages, bar_format=shape, leave=False)
        self._bar.update(self._begun - 1 - self._bar.n)
        self._bar.set_description_str(text)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
