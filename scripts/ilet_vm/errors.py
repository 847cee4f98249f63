"""What can go wrong in the lab, in one line."""


class LabError(Exception):
    """The lab cannot be made or used."""


class CheckFailed(Exception):
    """What a test saw is not what it wants."""


class NotHere(Exception):
    """A test's premise is not met by this driver or kernel: said, and not counted as passed."""
