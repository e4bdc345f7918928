"""Processes that outlive their starter: started once, found again, ended with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from cloudai.drivers.local.processes import Processes
from tests.conftest import kill, wait_until


@pytest.fixture
def processes(tmp_path):
    made = Processes(tmp_path / "jobs")
    yield made
    for key in made.keys():
        made.stop(key, grace=0.1)


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended(processes, key):
    return wait_until(lambda: (p := processes.look(key)) is not None and not p.alive and p, what=f"the end of {key}")


def test_writes_its_log_and_exit_code(processes):
    processes.start("one", ["-c", "print('hello'); raise SystemExit(7)"], {})
    assert ended(processes, "one").exit_code == 7
    assert list(processes.log_lines("one", follow=False)) == ["hello"]


def test_the_environment_and_folder_are_as_asked(processes, tmp_path):
    code = "import os; print(os.environ['COLOUR'], os.getcwd())"
    processes.start("one", ["-c", code], {"COLOUR": "green"}, cwd=str(tmp_path))
    ended(processes, "one")
    assert list(processes.log_lines("one", follow=False)) == [f"green {tmp_path}"]


def test_starting_twice_starts_once(processes, tmp_path):
    code = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    for _ in range(3):
        processes.start("one", ["-c", code], {})
    ended(processes, "one")
    processes.start("one", ["-c", code], {})
    assert (tmp_path / "count").read_text() == "x"


def test_many_starters_at_once_start_once(processes, tmp_path):
    code = f"open({str(tmp_path / 'count')!r}, 'a').write('x'); import time; time.sleep(0.3)"
    threads = [threading.Thread(target=processes.start, args=("one", ["-c", code], {})) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended(processes, "one")
    assert (tmp_path / "count").read_text() == "x"


def test_again_starts_only_what_has_ended(processes):
    processes.start("one", ["-c", "import time; time.sleep(60)"], {})
    first = processes.look("one").pid
    processes.start("one", ["-c", "import time; time.sleep(60)"], {}, again=True)
    assert processes.look("one").pid == first
    kill(first)
    ended(processes, "one")
    processes.start("one", ["-c", "import time; time.sleep(60)"], {}, again=True)
    assert processes.look("one").alive
    assert processes.look("one").pid != first


def test_a_killed_process_says_so(processes):
    processes.start("one", ["-c", "import time; time.sleep(60)"], {})
    kill(processes.look("one").pid)
    assert ended(processes, "one").exit_code == 128 + signal.SIGKILL


def test_killed_with_its_keeper_it_is_gone_without_a_word(processes):
    processes.start("one", ["-c", "import time; time.sleep(60)"], {})
    pid = processes.look("one").pid
    keeper = psutil.Process(pid).ppid()
    os.kill(keeper, signal.SIGKILL)
    kill(pid)
    assert ended(processes, "one").exit_code is None


def test_stop_gives_time_to_end_well(processes):
    code = "import signal, sys, time\nsignal.signal(15, lambda *a: sys.exit(42))\nprint('up', flush=True)\ntime.sleep(60)"
    processes.start("one", ["-c", code], {})
    wait_until(lambda: list(processes.log_lines("one", follow=False)) == ["up"])
    processes.stop("one", grace=10)
    assert ended(processes, "one").exit_code == 42


def test_a_process_that_has_only_just_started_hears_that_it_should_end(processes):
    for number in range(12):
        processes.start(f"p{number}", ["-c", "import time; time.sleep(60)"], {})
        processes.stop(f"p{number}", grace=30)
        assert processes.look(f"p{number}").exit_code == 128 + signal.SIGTERM


def test_stop_ends_what_does_not_listen_and_its_children(processes):
    child = "import time; time.sleep(60)"
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    processes.start("one", ["-c", code], {})
    wait_until(lambda: list(processes.log_lines("one", follow=False)) == ["up"])
    family = psutil.Process(processes.look("one").pid).children(recursive=True)
    assert family
    processes.stop("one", grace=0.2)
    assert not processes.look("one").alive
    wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))


@pytest.mark.parametrize(("end", "code_of_it"), [("raise SystemExit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_what_it_leaves_behind_ends_with_it(processes, end, code_of_it):
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    code = f"import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); {end}"
    processes.start("one", ["-c", code], {})
    assert ended(processes, "one").exit_code == code_of_it
    left = int(next(processes.log_lines("one", follow=False)))
    wait_until(lambda: not is_running(left), what="the end of what was left")


def test_outlives_its_starter_and_is_found_by_another(processes, tmp_path):
    code = (
        "import os, pathlib, sys; from cloudai.drivers.local.processes import Processes\n"
        "Processes(pathlib.Path(sys.argv[1])).start('one', ['-c', 'import time; time.sleep(60)'], {})\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(processes.root)], check=True)
    assert processes.look("one").alive


def test_unknown_and_never_started(processes):
    assert processes.look("nothing") is None
    processes.stop("nothing", grace=1)
    assert list(processes.log_lines("nothing", follow=True)) == []


def test_follow_reads_until_the_end(processes):
    code = (
        "import time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(0.1)\nprint('end without newline', end='')"
    )
    processes.start("one", ["-c", code], {})
    assert list(processes.log_lines("one", follow=True)) == ["0", "1", "2", "end without newline"]


def test_a_later_process_with_the_same_number_is_not_taken_for_it(processes):
    processes.start("one", ["-c", "pass"], {})
    ended(processes, "one")
    folder = processes.folder("one")
    (folder / "exit").unlink()
    (folder / "pid").write_text(str(os.getpid()))
    old = psutil.Process().create_time() - 3600
    os.utime(folder / "pid", (old, old))
    assert not processes.look("one").alive
