"""`python3 -m ilet_bench`: for scripts/bench, which makes the lab first."""

import sys

from . import command

sys.exit(command.main(sys.argv[1:]))
