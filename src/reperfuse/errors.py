"""The kinds of error a person can mend."""


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence naming the file and the remedy.

    The command line prints it and exits with 2; anything else is a defect and shows as one.
    """


class WorkerLost(InputError):
    """The processes that worked on one item died over it, again and again; the other items are not touched by that."""
