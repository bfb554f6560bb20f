"""Becomes the command that follows, with what a sweep wants of its processes; run as a file, it imports nothing heavy.

    python child.py PARENT PROCESSORS COMMAND...

PARENT: the sweep's process number. PROCESSORS: those to use, with commas between; "-" for all. (`subprocess` could call
this between fork and exec, were a process that has started JAX's threads allowed to fork.)
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)

parent, processors, *command = sys.argv[1:]
if processors != "-":
    os.sched_setaffinity(0, map(int, processors.split(",")))  # XLA makes as many threads
if sys.platform.startswith("linux"):  # elsewhere a run goes on when its sweep is killed
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))  # it saves and ends
    if os.getppid() != int(parent):  # killed before that
        sys.exit(1)
os.execv(command[0], command)
