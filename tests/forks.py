"""Runs programs, each in a fork of one process that has imported torch, Triton and our kernels: most of their time.

A line of standard input is a program and its arguments, in JSON; the line that answers is its exit code, and what it
has written to its standard output and error.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback

import machine_code  # noqa: F401
import torch  # noqa: F401

import launches  # noqa: F401


def forked(command, output, errors):
    """The exit code of a program."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    for descriptor, file in enumerate((open(os.devnull), output, errors)):
        os.dup2(file.fileno(), descriptor)
    sys.argv, code = command, 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


for line in sys.stdin:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        answer = [forked(json.loads(line), output, errors)]
        for file in (output, errors):
            file.seek(0)
            answer.append(file.read().decode())
    print(json.dumps(answer), flush=True)
