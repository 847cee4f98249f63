"""A virtual machine with network drivers that do AF_XDP zero-copy, and the tests that run in it: scripts/vm-lab."""
