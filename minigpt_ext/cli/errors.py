"""How a command ends when the person has to change something."""


class UserError(Exception):
    """A wish that cannot be met as it was put. The message is shown as `error: ...`, without a traceback; exit status 2."""
