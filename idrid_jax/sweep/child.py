"""Replace this process by a command that ends with its sweep and uses only some processors.

    python child.py PARENT PROCESSORS COMMAND...

PARENT: process id of the sweep. PROCESSORS: numbers separated by commas; "-" for all. `job.py` runs this file, which
imports nothing heavy, because a function between fork and exec is unsafe in a process with JAX's threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)

parent, processors, *command = sys.argv[1:]
if processors != "-":
    os.sched_setaffinity(0, map(int, processors.split(",")))  # XLA starts as many threads
if sys.platform.startswith("linux"):  # elsewhere a run continues when its sweep is killed
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))  # the run then saves and ends
    if os.getppid() != int(parent):  # the sweep was killed before prctl
        sys.exit(1)
os.execv(command[0], command)
