"""The one exception for a user's mistake, so that every command can tell it from a bug of ours."""


class UserError(Exception):
    """A mistake in what the user gave: a path, a file, a field, a value.

    The message is one line: it names the file or field, the value found, and what to do. `cli` prints it without a
    traceback and exits with status 2; everything else that is raised is a bug and keeps its traceback.
    """
