"""The one error that users are meant to see."""


class InputError(Exception):
    """Something the user gave is wrong: a config value, a file, a combination of both.

    The message is one sentence that names the file or key at fault and the remedy. The command
    line prints it without a traceback and exits with code 2.
    """
