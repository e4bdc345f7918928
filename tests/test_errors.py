"""Errors: the two lines, the tree, and what a notebook prints."""

from __future__ import annotations

import pickle

import pytest

from cloudai import errors

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_demands_its_fix_and_prints_two_lines(kind):
    with pytest.raises(TypeError):
        kind("what")
    error = kind("the port 1 is taken", fix="give another")
    assert str(error).split("\n") == ["the port 1 is taken", "Fix: give another"]
    assert issubclass(kind, errors.CloudAIError)


def test_errors_double_as_built_ins():
    pairs = {
        errors.SpecError: ValueError,
        errors.NotFoundError: LookupError,
        errors.MissingExtraError: ImportError,
        errors.PlacementError: RuntimeError,
        errors.RunFailedError: RuntimeError,
    }
    assert all(issubclass(ours, built_in) for ours, built_in in pairs.items())


def test_a_not_found_error_prints_without_quotes_as_a_key_error_would():
    assert str(errors.NotFoundError("no 'x'", fix="look\nagain")) == "no 'x'\nFix: look\nagain"


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_process_boundaries(kind):
    error = pickle.loads(pickle.dumps(kind("what", fix="fix", frames="line 3")))
    assert type(error) is kind
    assert (error.what, error.fix, error.frames) == ("what", "fix", "line 3")


def test_a_notebook_shows_two_lines_and_the_whole_on_demand(monkeypatch):
    error = errors.SpecError("what", fix="fix")
    assert error._render_traceback_() == ["SpecError: what", "Fix: fix"]
    monkeypatch.setenv("CLOUDAI_TRACEBACK", "full")
    assert error._render_traceback_() is None


def test_the_users_own_frames_are_kept():
    error = errors.RunFailedError("it failed", fix="mend it", frames='  File "work.py", line 3, in f\n    1 / 0\n')
    assert str(error).endswith("1 / 0")


def test_ipython_prints_the_two_lines():
    from IPython.testing.globalipapp import get_ipython

    shell = get_ipython() or __import__("IPython").core.interactiveshell.InteractiveShell.instance()
    from IPython.utils.capture import capture_output

    with capture_output() as out:
        shell.run_cell("from cloudai.errors import SpecError\nraise SpecError('the what', fix='the fix')")
    assert "Fix: the fix" in out.stdout
    assert "Traceback" not in out.stdout
