"""Settings: the order of their sources, where each came from, and values that cannot be read."""

from __future__ import annotations

import pytest

from cloudai import settings
from cloudai.errors import SpecError


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in settings.NAMES:
        monkeypatch.delenv(f"CLOUDAI_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield
    settings._overrides.clear()


def test_the_order_is_keyword_environment_project_user_default(monkeypatch, tmp_path):
    def found():
        now = settings.current()
        return now.local_price_per_hour, now.sources["local_price_per_hour"]

    assert found() == (0.0, "default")
    own = tmp_path / "config" / "cloudai" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("local_price_per_hour = 0.5\n")
    assert found() == (0.5, str(own))
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.cloudai]\nlocal_price_per_hour = 1.5\n")
    assert found() == (1.5, str(project))
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "2.5")
    assert found() == (2.5, "CLOUDAI_LOCAL_PRICE_PER_HOUR")
    settings.configure(local_price_per_hour=3.5)
    assert found() == (3.5, "configure()")
    settings.configure(local_price_per_hour=None)
    assert found()[0] == 2.5


def test_the_project_is_found_from_a_folder_inside_it(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.cloudai]\ncurrency = 'EUR'\n")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert settings.current().currency == "EUR"


def test_store_and_tracking_follow_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOUDAI_HOME", str(tmp_path / "h"))
    assert settings.current().store == str(tmp_path / "h" / "store")
    assert settings.current().tracking == f"sqlite:///{tmp_path / 'h' / 'mlflow.db'}"


def test_unknown_names_and_unreadable_values_say_where_they_came_from(monkeypatch, tmp_path):
    with pytest.raises(SpecError, match="did you mean 'home'"):
        settings.configure(hoem="/x")
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "cheap")
    with pytest.raises(SpecError, match=r"'cheap' \(from CLOUDAI_LOCAL_PRICE_PER_HOUR\)"):
        settings.current()
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "-1")
    with pytest.raises(SpecError):
        settings.current()
    monkeypatch.delenv("CLOUDAI_LOCAL_PRICE_PER_HOUR")
    (tmp_path / "pyproject.toml").write_text("[tool.cloudai]\ncurency = 'EUR'\n")
    with pytest.raises(SpecError, match="'curency'"):
        settings.current()


@pytest.mark.parametrize(
    ("text", "complaint"), [("curency = 'EUR'", "did you mean 'currency'"), ("currency = ", "cannot be read")]
)
def test_a_broken_file_of_ones_own_is_reported(tmp_path, text, complaint):
    file = tmp_path / "config" / "cloudai" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(SpecError, match=complaint) as caught:
        settings.current()
    assert str(file) in str(caught.value)


def test_a_shared_ledger_is_an_address_with_a_user_and_without_a_password(monkeypatch):
    good = settings.configure(ledger="postgresql://ada@db.example.org:5432/team?sslmode=require")
    assert good.sources["ledger"] == "configure()"
    for url in (
        "postgresql://ada:hunter2@db/team",
        "postgresql://db/team?password=hunter2",
        "postgresql://[ada:hunter2@db/team",
    ):
        with pytest.raises(SpecError, match="holds a password") as caught:
            settings.configure(ledger=url)
        assert "hunter2" not in str(caught.value)
    for url in ("mysql://db/team", "team.sqlite", "postgresql://db"):
        with pytest.raises(SpecError, match=r"write it as postgresql://user@host:5432/dbname"):
            settings.configure(ledger=url)


def test_a_misspelt_variable_is_not_silent(monkeypatch):
    monkeypatch.setenv("CLOUDAI_STROE", "/data")
    monkeypatch.setenv("CLOUDAI_OF_ANOTHER_PROGRAM", "1")
    notes = settings.current().card().notes
    assert list(notes) == ["CLOUDAI_STROE is set in the environment and means nothing: did you mean CLOUDAI_STORE?"]


def test_a_password_in_an_address_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("CLOUDAI_TRACKING", "https://me:hunter2@mlflow.example.org")
    with pytest.raises(SpecError, match="holds a user name or password") as caught:
        settings.current()
    assert "hunter2" not in str(caught.value)


def test_a_duration_that_is_none_is_refused_where_it_is_set():
    with pytest.raises(SpecError, match=r"'run_lease' cannot be 'soon' \(from configure\(\)\)"):
        settings.configure(run_lease="soon")


def test_a_refused_keyword_changes_nothing():
    with pytest.raises(SpecError):
        settings.configure(currency="EUR", local_price_per_hour="cheap")
    assert settings.current().currency == "USD"


def test_a_broken_pyproject_of_another_tool_is_not_ours_to_report(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.other\n")
    assert settings.current().currency == "USD"


def test_the_card_names_every_source():
    text = str(settings.current())
    assert all(name in text for name in settings.NAMES)
    assert "default" in text
