"""The two errors that a person can mend: each is one line that names the parameter and what to do."""


class InputError(ValueError):
    """A parameter, file or configuration is wrong. The command line exits with status 2."""


class MissingError(RuntimeError):
    """Data, weights or a device that the work needs is not there. The command line exits with status 3."""
