"""Errors of the lab. Their texts are one line each."""


class LabError(Exception):
    """The lab cannot be made or used."""


class CheckFailed(Exception):
    """A check saw something else than it expects."""


class NotHere(Exception):
    """This driver or kernel lacks something that a check needs. Reported, and not counted as passed."""
