"""The benchmark behind scripts/bench, one thing per module.

scenarios    what is measured: cells, peers and figures of each scenario, as data
peers        the servers: how each is started and where its receive work is done
plan         which measurements make up a run, in which order, and how long that takes
lab          the run's namespaces: processes in them, and the settings of the veth pairs
clients      the command lines of ilet-load, wrk, curl and the other clients, and what they print
relay        the relay that makes a link a bad one
trace        what a sender did, from the relay's trace of its packets
probe        a program that opens connections while a flood runs
procfs       processor time, context switches and memory, read from /proc
measure      one measurement: a fresh server, one client, the figures or what went wrong
figures      names, units and formats of the figures; medians, and ratios round by round
results      rows and results.json
tables       the rows as text
plots        the rows as SVG
machine      what the run ran on
goals        the speeds that the project promises, checked against the rows
command      the command line, and the run from beginning to end
"""
