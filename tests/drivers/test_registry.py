"""Drivers are found by name, and only errors of ours come out of them."""

from __future__ import annotations

import pytest

import cloudai
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

    def logs(self, job_id, *, follow=False):
        yield LogLine("one")
        raise OSError("the connection broke while reading")


@pytest.fixture(autouse=True)
def clean():
    yield
    registry._registered.clear()
    registry.get.cache_clear()


def test_the_built_in_driver_satisfies_every_protocol(home):
    driver = registry.get("local")._driver
    for protocol in (Driver, TrainDriver, ServeDriver, TelemetryDriver):
        assert isinstance(driver, protocol)
    assert list(registry.get("local").check()) == []


def test_one_from_a_notebook_is_found():
    cloudai.drivers.register("mine", Broken)
    assert "mine" in cloudai.drivers.names()
    assert registry.train_driver("mine").name == "broken"


def test_foreign_errors_become_ours_and_say_what_the_driver_was_doing():
    registry.register("broken", Broken)
    driver = registry.train_driver("broken")
    with pytest.raises(DriverError, match="the driver 'broken' failed to offers: KeyError: 'no such region'"):
        driver.offers(Needs())
    with pytest.raises(CloudAIError, match="ours"):
        driver.close()


def test_also_while_an_iterator_is_read():
    registry.register("broken", Broken)
    lines = registry.train_driver("broken").logs(JobId("x"))
    assert next(lines) == LogLine("one")
    with pytest.raises(DriverError, match="failed to logs: OSError: the connection broke"):
        next(lines)


def test_unknown_and_unable():
    with pytest.raises(NotFoundError, match="there is no driver 'lcoal'"):
        registry.get("lcoal")
    registry.register("broken", Broken)
    with pytest.raises(SpecError, match="cannot serve") as caught:
        registry.serve_driver("broken")
    assert "local" in caught.value.fix


def test_a_built_in_name_cannot_be_taken():
    with pytest.raises(SpecError, match="'local' is a built-in driver"):
        registry.register("local", Broken)


def test_a_driver_whose_packages_are_missing_says_what_to_install():
    def factory():
        import no_such_package_of_a_cloud  # noqa: F401

    registry.register("far", factory)
    with pytest.raises(MissingExtraError, match="no_such_package_of_a_cloud") as caught:
        registry.get("far")
    assert caught.value.fix == 'pip install "cloudai[far]"'
