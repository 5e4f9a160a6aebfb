"""Settings: where they come from, which wins, and what is said about wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from nbtasks import config
from nbtasks.exceptions import ImproperlyConfigured


@pytest.fixture(autouse=True)
def fresh_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    config.reset()
    yield
    config.reset()


def write_pyproject(folder: Path, *lines: str) -> None:
    (folder / "pyproject.toml").write_text("\n".join(["[tool.nbtasks]", *lines]))


def test_without_any_configuration_pickle_and_full_durability_hold():
    now = config.settings()

    assert (now.task_serializer, now.result_serializer, now.durability) == (
        "pickle",
        "pickle",
        "full",
    )
    assert now.result_expires == 86400
    assert now.task_publish_retry_policy["interval_step"] == 0.2


def test_settings_are_read_once():
    assert config.settings() is config.settings()


def test_settings_cannot_be_assigned():
    with pytest.raises(AttributeError):
        config.settings().durability = "none"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("NBTASKS_TASK_ALWAYS_EAGER", "1", "task_always_eager", True),
        ("NBTASKS_TASK_ALWAYS_EAGER", "yes", "task_always_eager", True),
        ("NBTASKS_TASK_ALWAYS_EAGER", "off", "task_always_eager", False),
        ("NBTASKS_TASK_REJECT_ON_WORKER_LOST", "yes", "task_reject_on_worker_lost", True),
        ("NBTASKS_TASK_REJECT_ON_WORKER_LOST", "off", "task_reject_on_worker_lost", False),
        ("NBTASKS_TASK_TIME_LIMIT", "2.5", "task_time_limit", 2.5),
        ("NBTASKS_TASK_TIME_LIMIT", "none", "task_time_limit", None),
        ("NBTASKS_WORKER_CONCURRENCY", "3", "worker_concurrency", 3),
        ("NBTASKS_WORKER_CONCURRENCY", " 3 ", "worker_concurrency", 3),
        ("NBTASKS_DURABILITY", " none ", "durability", "none"),
        ("NBTASKS_TASK_DEFAULT_QUEUE", "yes", "task_default_queue", "yes"),
        ("NBTASKS_ACCEPT_CONTENT", "json, yaml", "accept_content", ("json", "yaml")),
        ("NBTASKS_DIR", "/somewhere", "dir", "/somewhere"),
    ],
)
def test_the_environment_is_read(monkeypatch, variable, text, name, value):
    monkeypatch.setenv(variable, text)

    assert getattr(config.settings(), name) == value


def test_pyproject_wins_over_the_environment_and_configure_over_both(tmp_path, monkeypatch):
    monkeypatch.setenv("NBTASKS_DURABILITY", "none")
    monkeypatch.setenv("NBTASKS_TASK_DEFAULT_QUEUE", "env")
    monkeypatch.setenv("NBTASKS_TIMEZONE", "Asia/Tokyo")
    write_pyproject(tmp_path, 'durability = "normal"', 'task_default_queue = "file"')

    config.configure(task_default_queue="call")

    now = config.settings()
    assert (now.durability, now.task_default_queue, now.timezone) == (
        "normal",
        "call",
        "Asia/Tokyo",
    )


def test_the_nearest_pyproject_with_a_table_counts(tmp_path, monkeypatch):
    write_pyproject(tmp_path, 'task_default_queue = "outer"')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    monkeypatch.chdir(inner)

    assert config.settings().task_default_queue == "outer"


def test_a_partial_retry_policy_is_merged_over_the_defaults(monkeypatch):
    monkeypatch.setenv("NBTASKS_TASK_PUBLISH_RETRY_POLICY", '{"max_retries": 9}')

    policy = config.settings().task_publish_retry_policy

    assert (policy["max_retries"], policy["interval_step"]) == (9, 0.2)


def test_dashes_in_pyproject_are_underscores(tmp_path):
    write_pyproject(tmp_path, 'task-default-queue = "q"')

    assert config.settings().task_default_queue == "q"


def test_a_timedelta_is_seconds():
    assert config.configure(result_expires=timedelta(hours=1)).result_expires == 3600


def test_a_wrong_name_is_refused_with_the_nearest_one():
    with pytest.raises(ImproperlyConfigured, match="Did you mean 'task_serializer'"):
        config.configure(task_serialiser="json")


def test_a_misspelt_variable_is_refused_with_the_nearest_name(monkeypatch):
    monkeypatch.setenv("NBTASKS_DURABILTY", "none")

    with pytest.raises(ImproperlyConfigured, match=r"NBTASKS_DURABILTY.*'durability'"):
        config.settings()


def test_somebody_elses_variable_is_left_alone(monkeypatch):
    monkeypatch.setenv("NBTASKS_XYZZY", "1")
    monkeypatch.setenv("NBTASKS_RUNTIME", "/run")

    assert config.settings() == config.Settings()


def test_a_wrong_type_is_refused_with_place_reason_and_default(tmp_path):
    write_pyproject(tmp_path, "task_default_priority = 12")

    with pytest.raises(ImproperlyConfigured) as caught:
        config.settings()

    text = str(caught.value)
    assert "task_default_priority = 12" in text
    assert str(tmp_path / "pyproject.toml") in text
    assert "<= 9" in text
    assert "default, 5" in text


def test_a_wrong_choice_is_refused_with_the_right_ones():
    with pytest.raises(ImproperlyConfigured, match=r"durability = 'fsync'.*'full', 'normal'"):
        config.configure(durability="fsync")


@pytest.mark.parametrize("zone", ["Mars", "", "../etc/passwd", "Europe", "a\0b"])
def test_a_time_zone_that_there_is_not_is_refused(zone):
    with pytest.raises(ImproperlyConfigured, match="no such time zone"):
        config.configure(timezone=zone)


def test_settings_can_be_read_in_a_folder_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    assert config.settings() == config.Settings()


def test_a_refused_change_changes_nothing():
    with pytest.raises(ImproperlyConfigured):
        config.configure(task_default_queue="q", task_time_limit=-1)

    assert config.settings() == config.Settings()


def test_a_broken_retry_policy_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("NBTASKS_TASK_PUBLISH_RETRY_POLICY", "{")

    with pytest.raises(ImproperlyConfigured, match="not a JSON object"):
        config.settings()


def test_a_broken_pyproject_is_named(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.nbtasks\n")

    with pytest.raises(ImproperlyConfigured, match=r"pyproject\.toml is not valid TOML"):
        config.settings()


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("300MB", 300_000_000),
        ("300 mb", 300_000_000),
        ("1.5GiB", 3 * 2**29),
        ("2k", 2048),
    ],
)
def test_sizes_are_read(size, count):
    assert config.parse_size(size) == count


@pytest.mark.parametrize("size", [0, -1, "", "MB", "3 lots", "infGB", "nan"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match="not a size in bytes"):
        config.parse_size(size)
