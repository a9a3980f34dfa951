"""The environment of a checkout: when it counts as finished, and what it can see."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "dev" / "env"))
import env_guards as guards
import make_env
import run_logged as logged
import venv_layers as layers

MODULE = """
import sys

def main():
    print(sys.prefix, sys.argv[1:])
"""


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """An environment with one package `hello`, which has a command of that name."""
    folder = tmp_path / "lower env"
    layers.create(folder, with_pip=False)
    packages = layers.site_packages(folder)
    (packages / "hello.py").write_text(MODULE)
    info = packages / "hello-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nhello = hello:main\n")
    (folder / "bin" / "program").write_text("#!/bin/sh\necho program\n")
    (folder / "bin" / "program").chmod(0o755)
    return folder


def output(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def copy_of_what_decides(root: Path) -> None:
    for pattern in make_env.DECIDES_DEPENDENCIES:
        for path in REPO.glob(pattern):
            copy = root / path.relative_to(REPO)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def test_upper_environment_runs_packages_and_commands_of_the_lower(lower, tmp_path):
    upper = tmp_path / "upper env"  # paths with spaces must work
    layers.create(upper, with_pip=False)
    layers.put_on_top(upper, lower)
    assert output(upper / "bin" / "hello", "a b") == f"{upper} ['a b']\n"
    assert output(upper / "bin" / "python", "-m", "hello") == ""
    assert output(upper / "bin" / "program") == "program\n"
    assert (upper / "bin" / "python").resolve() == (lower / "bin" / "python").resolve()


def test_packages_of_the_upper_environment_come_first(lower, tmp_path):
    upper = tmp_path / "upper"
    layers.create(upper, with_pip=False)
    layers.put_on_top(upper, lower)
    (layers.site_packages(upper) / "hello.py").write_text("def main():\n    print('mine')\n")
    assert output(upper / "bin" / "hello") == "mine\n"


def test_environment_is_unfinished_until_marked(lower):
    assert not layers.is_complete(lower, "state")
    layers.mark_complete(lower, "state")
    assert layers.is_complete(lower, "state")
    assert not layers.is_complete(lower, "another state")
    layers.mark_incomplete(lower)
    assert not layers.is_complete(lower, "state")


def test_environment_whose_python_is_gone_is_unfinished(lower):
    layers.mark_complete(lower, "state")
    python = lower / "bin" / "python"
    python.unlink()
    python.symlink_to(lower / "gone")
    assert not layers.is_complete(lower, "state")


def test_environment_of_the_user_is_left_alone(tmp_path, monkeypatch):
    mine = tmp_path / ".venv" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    at = make_env.Places(tmp_path, tmp_path / "cache", tmp_path / "cache" / "venv-1")
    with pytest.raises(guards.EnvError, match=r"\.venv was not made by `make env`"):
        make_env.build_checkout(at, 0)
    assert mine.exists()


def test_finished_environment_is_not_touched(tmp_path, monkeypatch, capsys):
    at = make_env.Places(tmp_path, tmp_path / "cache", tmp_path / "cache" / "venv-1")
    for folder, state in ((at.dependencies, "venv-1"), (at.venv, make_env.checkout_state(at))):
        layers.create(folder, with_pip=False)
        layers.mark_complete(folder, state)
    monkeypatch.setattr(make_env, "run_logged", pytest.fail)
    make_env.ensure(at, "pip", rebuild=False)
    assert capsys.readouterr().out == f"environment is up to date: {at.venv}\n"


@pytest.mark.parametrize("name", ["requirements.txt", "dev/env/detectron2_edits.py"])
def test_changed_pin_or_edit_means_another_environment(name, tmp_path):
    copy_of_what_decides(tmp_path)
    before = make_env.places(tmp_path)
    assert before == make_env.places(tmp_path)
    assert before.dependencies.name == make_env.places(REPO).dependencies.name
    with (tmp_path / name).open("a") as file:
        file.write("# changed\n")
    assert make_env.places(tmp_path).dependencies != before.dependencies


def test_full_disk_is_said_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(make_env, "BYTES_NEEDED", 10**18)
    at = make_env.Places(REPO, tmp_path, tmp_path / "venv-1")
    with pytest.raises(guards.EnvError, match="XDG_CACHE_HOME"):
        make_env.build_dependencies(at, "pip", 0)
    assert list(tmp_path.iterdir()) == []


def test_lock_outlives_a_killed_process_while_its_installer_runs(tmp_path):
    installer = [sys.executable, "-c", "input()"]
    with guards.only_one(tmp_path) as lock:
        process = subprocess.Popen(installer, stdin=subprocess.PIPE, pass_fds=(lock,))
    with (tmp_path / "make_env.lock").open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.communicate(b"\n")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_unsupported_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    monkeypatch.setattr(guards.shutil, "which", lambda name: None)
    with pytest.raises(guards.EnvError, match=r"Python 3\.10 to 3\.12 is needed"):
        guards.use_supported_python()


def test_unknown_installer_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("INSTALLER", "conda")
    assert make_env.main([]) == 1
    assert capsys.readouterr().err == "error: INSTALLER=conda: must be pip or uv\n"


def test_failed_step_names_its_reason_and_the_log(tmp_path, capsys):
    log = tmp_path / "log"
    command = [sys.executable, "-c", "print('ERROR: no such package'); print('bye'); exit(3)"]
    with pytest.raises(logged.CommandError) as error:
        logged.run_logged(command, "installing", "1 s", log)
    assert str(error.value) == f"installing failed: ERROR: no such package; full output in {log}"
    assert capsys.readouterr().out == "installing (usually 1 s)\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.6, "8 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s")]
)
def test_durations_are_written_as_people_say_them(seconds, text):
    assert logged.duration(seconds) == text
