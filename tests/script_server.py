"""Starts Python programs by forking a process that has imported the libraries already, and nothing
of the product.

A line of JSON asks for a program: argv (the script first), cwd, environment, stdout and stderr
(files). Answers are lines, too: the process id, and when it has ended its exit code.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = [
    "matplotlib.figure",
    "numba",
    "pandas",
    "psutil",
    "pyarrow.parquet",
    "rich.console",
    "rich.progress",
    "rich.table",
    "scipy.fft",
    "scipy.optimize",
    "scipy.special",
    "torch",
    "yaml",
]


def serve() -> None:
    """Until the input ends."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            run(json.loads(line))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def run(program: dict[str, Any]) -> NoReturn:
    """In a new process; its end leaves out only the taking down of libraries, which would take a
    second.
    """
    os.chdir(program["cwd"])
    os.environ.clear()
    os.environ.update(program["environment"])
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, program["stdout"], os.O_WRONLY),
        (2, program["stderr"], os.O_WRONLY),
    ):
        os.dup2(os.open(name, flags), number)
    sys.argv = program["argv"]
    sys.path[:1] = [str(Path(sys.argv[0]).parent), os.environ["PYTHONPATH"]]
    code = exit_code(sys.argv[0])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code(script: str) -> int:
    """Of the script, as the interpreter gives it."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (whatever ends a program ends it with its traceback)
        traceback.print_exc()
        return 1
    return 0


for library in LIBRARIES:
    importlib.import_module(library)
gc.freeze()  # collecting would copy the pages that processes share
serve()
