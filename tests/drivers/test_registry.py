"""Drivers are found by name, only errors of ours come out of them, and a bad one does not spoil the others."""

from __future__ import annotations

import sys
import textwrap

import pytest

import cloudai
from cloudai import cli
from cloudai.drivers import registry
from cloudai.drivers.protocols import Capabilities, Driver, JobId, LogLine, Needs, ServeDriver, TelemetryDriver, TrainDriver
from cloudai.errors import CloudAIError, DriverError, MissingExtraError, NotFoundError, SpecError


class Broken:
    """A driver in which everything goes wrong, in the ways that real ones do."""

    name = "broken"
    capabilities = Capabilities(train=True)

    def check(self):
        return []

    def offers(self, needs):
        raise KeyError("no such region")

    def close(self):
        raise CloudAIError("ours", fix="passes unchanged")

    def submit(self, job, offer, *, key):
        return JobId(key)

    def status(self, job_id):
        return Lazy()

    def cancel(self, job_id):
        pass

    def logs(self, job_id, *, follow=False):
        yield LogLine("one")
        raise OSError("the connection broke while reading")


class Lazy:
    """Something that is read later, without being an iterator."""

    def __iter__(self):
        yield 1
        raise OSError("the connection broke")


@pytest.fixture(autouse=True)
def clean():
    yield
    registry._registered.clear()
    registry.get.cache_clear()
    registry._entry_points.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package with a driver where Python finds it, as an installer would."""

    def put(package, code, name="far", attribute="make"):
        module = package.replace("-", "_")
        site = tmp_path / package
        info = site / f"{module}-1.2.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[cloudai.drivers]\n{name} = {module}:{attribute}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(str(site))
        registry._entry_points.cache_clear()

    return put


def test_the_built_in_driver_satisfies_every_protocol(home):
    driver = registry.get("local")._driver
    for protocol in (Driver, TrainDriver, ServeDriver, TelemetryDriver):
        assert isinstance(driver, protocol)
    assert list(registry.get("local").check()) == []


def test_one_from_a_notebook_is_found():
    cloudai.drivers.register("broken", Broken)
    assert "broken" in cloudai.drivers.names()
    assert registry.train_driver("broken").name == "broken"


def test_foreign_errors_become_ours_and_say_what_the_driver_was_doing():
    registry.register("broken", Broken)
    driver = registry.train_driver("broken")
    with pytest.raises(DriverError, match="the driver 'broken' failed to offers: KeyError: 'no such region'"):
        driver.offers(Needs())
    with pytest.raises(CloudAIError, match="ours"):
        driver.close()


@pytest.mark.parametrize(("act", "first"), [("logs", LogLine("one")), ("status", 1)])
def test_also_while_what_it_gave_is_read(act, first):
    registry.register("broken", Broken)
    items = iter(getattr(registry.train_driver("broken"), act)(JobId("x")))
    assert next(items) == first
    with pytest.raises(DriverError, match=f"failed to {act}: OSError: the connection broke"):
        next(items)


def test_unknown_and_unable():
    with pytest.raises(NotFoundError, match="there is no driver 'lcoal'"):
        registry.get("lcoal")
    registry.register("broken", Broken)
    with pytest.raises(SpecError, match="cannot serve") as caught:
        registry.serve_driver("broken")
    assert "local" in caught.value.fix


@pytest.mark.parametrize("autoscaling", ["no", "own", "asked"])
def test_who_wants_to_be_asked_to_scale_must_have_the_method(autoscaling):
    class Serves(Broken):
        name = "serves"
        capabilities = Capabilities(serve=True, autoscaling=autoscaling)
        apply = route = retire = inspect = delete = lambda self: None

    registry.register("serves", Serves)
    if autoscaling == "asked":
        with pytest.raises(DriverError, match=r"it has no method scale\(\)"):
            registry.serve_driver("serves")
    else:
        assert registry.serve_driver("serves").name == "serves"


def test_a_built_in_name_cannot_be_taken():
    with pytest.raises(SpecError, match="'local' is a built-in driver"):
        registry.register("local", Broken)


def test_a_built_in_driver_whose_packages_are_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(registry._BUILT_IN, "moon", "no_such_package_of_a_moon:Driver")
    with pytest.raises(MissingExtraError, match="the driver 'moon' needs no_such_package_of_a_moon") as caught:
        registry.get("moon")
    assert caught.value.fix == 'pip install "cloudai[moon]"'


BAD = {
    "needs a package": (
        "import no_such_package_of_a_cloud",
        MissingExtraError,
        "the driver 'far' of the package cloudai-far 1.2 needs no_such_package_of_a_cloud, which is not installed",
        "pip install --upgrade cloudai-far",
    ),
    "does not import": (
        "1 / 0",
        DriverError,
        "'far' of the package cloudai-far 1.2 cannot be loaded: ZeroDivisionError",
        "report",
    ),
    "has no such name": ("x = 1", DriverError, "cannot be loaded: AttributeError: module 'cloudai_far' has no", "report"),
    "refuses to be made": (
        "def make():\n    raise ValueError('no region')",
        DriverError,
        "of the package cloudai-far 1.2 cannot be loaded: ValueError: no region",
        "pip uninstall cloudai-far",
    ),
    "is no driver": ("make = dict", DriverError, "is not one: capabilities is NoneType", "report"),
    "lacks a method": (
        """
        from cloudai.drivers.protocols import Capabilities
        class make:
            name, capabilities = "far", Capabilities(train=True)
            check = offers = close = submit = status = logs = lambda self: None
        """,
        DriverError,
        "is not one: it has no method cancel(), and says that it can train",
        "report",
    ),
    "calls itself otherwise": (
        """
        from cloudai.drivers.protocols import Capabilities
        class make:
            name, capabilities = "near", Capabilities()
        """,
        DriverError,
        "is not one: it calls itself 'near'",
        "report",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.replace(" ", "-"))
def test_a_bad_package_is_named_with_what_to_do(case, install):
    code, kind, what, fix = BAD[case]
    install("cloudai-far", code)
    with pytest.raises(kind) as caught:
        registry.get("far")
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert str(caught.value).count("\n") == 1


def test_a_bad_package_does_not_stand_in_the_way_of_the_others(install, home, capsys):
    install("cloudai-far", "1 / 0")
    assert {"far", "local"} <= set(registry.names())
    registry.register("broken", Broken)

    def work(context):
        return None

    plan = cloudai.plan(work)
    assert plan.offer.driver == "local"
    assert "ZeroDivisionError" in plan.explain()
    assert "no such region" in plan.explain()
    assert "unknown" in plan.explain()
    with pytest.raises(SpecError, match="cannot serve"):
        registry.serve_driver("broken")
    assert cli.main(["doctor"]) == 0
    assert "cloudai-far 1.2 cannot be loaded: ZeroDivisionError" in capsys.readouterr().out


def test_two_packages_with_one_name_are_told(install):
    install("cloudai-far", "x = 1")
    install("cloudai-farther", "x = 1")
    with pytest.raises(DriverError, match="the package cloudai-far and the package cloudai-farther all have a driver 'far'"):
        registry.get("far")
    assert "far" in {name for name, _ in registry.problems()}


def test_a_package_cannot_take_a_built_in_name(install, home):
    install("cloudai-evil", "def make(): raise SystemExit", name="local")
    assert registry.train_driver("local").capabilities.here
    told = [problem.what for name, problem in registry.problems() if name == "local"]
    assert told == ["the package cloudai-evil has a driver of a built-in one's name, which is not used"]
