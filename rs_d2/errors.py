"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in a config, file, annotation or argument.

    Its text is one line that names the culprit; programs show it without a traceback, exit code 2.
    """
