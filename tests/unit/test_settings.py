"""Settings: what is wrong is named, with what is accepted."""

from traceback import format_exception

import pytest

from omni.errors import SettingsError, StoreError
from omni.settings import Settings, load_settings
from omni.store.database import Database


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("API_PORT", "abc", "AUTOMAGIK_OMNI_API_PORT: Input should be a valid integer"),
        ("API_PORT", "70000", "AUTOMAGIK_OMNI_API_PORT: Input should be less than or equal to 65535"),
        (
            "DATABASE_URL",
            "mysql://x",
            "AUTOMAGIK_OMNI_DATABASE_URL: must be empty or start with sqlite:// or postgresql://",
        ),
        ("LANGUAGE", "fr", "AUTOMAGIK_OMNI_LANGUAGE: Input should be 'en' or 'pt'"),
        ("ENABLE_TRACING", "perhaps", "AUTOMAGIK_OMNI_ENABLE_TRACING: Input should be a valid boolean"),
    ],
)
def test_a_wrong_value_names_the_variable_and_what_it_accepts(monkeypatch, name, value, told):
    monkeypatch.setenv(f"AUTOMAGIK_OMNI_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(told)


def test_all_wrong_values_are_named_at_once(monkeypatch):
    monkeypatch.setenv("AUTOMAGIK_OMNI_API_PORT", "abc")
    monkeypatch.setenv("AUTOMAGIK_OMNI_LANGUAGE", "fr")
    with pytest.raises(SettingsError, match=r"API_PORT.*LANGUAGE"):
        load_settings()


@pytest.mark.parametrize(
    ("given", "url", "setting"),
    [
        ({}, "sqlite:///data/automagik-omni.db", "AUTOMAGIK_OMNI_SQLITE_DATABASE_PATH"),
        ({"database_url": "postgres://u@h/d"}, "postgresql+psycopg://u@h/d", "AUTOMAGIK_OMNI_DATABASE_URL"),
        ({"database_url": "sqlite:///x.db"}, "sqlite:///x.db", "AUTOMAGIK_OMNI_DATABASE_URL"),
    ],
)
def test_the_database_and_the_variable_that_names_it(given, url, setting):
    settings = Settings(_env_file=None, **given)
    assert (settings.resolved_database_url, settings.database_setting) == (url, setting)


def test_a_path_that_cannot_be_opened_blames_the_variable_it_came_from(tmp_path):
    (tmp_path / "file").write_text("no folder")
    settings = Settings(_env_file=None, sqlite_database_path=tmp_path / "file" / "omni.db")
    with pytest.raises(StoreError, match=r"^AUTOMAGIK_OMNI_SQLITE_DATABASE_PATH: "):
        Database.open(settings.resolved_database_url, setting=settings.database_setting)


def test_a_wrong_value_that_holds_a_password_is_not_repeated_even_in_the_traceback(monkeypatch):
    monkeypatch.setenv("AUTOMAGIK_OMNI_DATABASE_URL", "mysql://omni:s3cret@db/omni")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    told = "".join(format_exception(refused.value))
    assert "AUTOMAGIK_OMNI_DATABASE_URL: must be empty or start with sqlite:// or postgresql://" in told
    assert "s3cret" not in told
