"""Starts one process and writes down how it ends: ``python -m cloudai_pocket.keeper FOLDER CWD ARGUMENT…``."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def put(path, text):
    """Write a file that others read meanwhile."""
    draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.draft")  # one for each writer
    draft.write_text(text)
    draft.replace(path)


def main(folder, cwd, argv):
    signal.signal(signal.SIGTERM, lambda *_: None)  # a SIGTERM to the group is for the process; the keeper sees its end
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, *argv], cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    put(folder / "pid", str(process.pid))
    code = process.wait()
    put(folder / "exit", str(code if code >= 0 else 128 - code))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
