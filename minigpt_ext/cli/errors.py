"""How a command ends when the person has to change something."""


class UserError(Exception):
    """A wish that cannot be met as it was put. Shown as `error: ...`, without a traceback; the exit status is 2."""
