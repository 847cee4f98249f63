"""The checks of scripts/vm-lab test, in their order."""

from . import kernels, lifecycle, links, modes, paths, queues

ALL = [*modes.CHECKS, *queues.CHECKS, *links.CHECKS, *lifecycle.CHECKS, *paths.CHECKS, *kernels.CHECKS]
