"""The installer of Detectron2: the edits, the wheel, the downloads and the command line."""

import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "dev" / "env"))
import detectron2_edits as edits
import detectron2_fetch as fetching
import detectron2_wheel as wheels
import install_detectron2 as installer
import make_env

SCRIPT = REPO / "tools" / "install_detectron2.py"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pinned source archive: an earlier download, or a new one."""
    for folder in (installer.WHEEL_DIR, make_env.places().cache / "wheels"):
        if (folder / wheels.SDIST_NAME).exists():
            return folder / wheels.SDIST_NAME
    try:
        return fetching.fetch_sdist(tmp_path_factory.mktemp("sdist"))
    except fetching.FetchError as error:
        pytest.skip(f"no source archive of Detectron2: {error}")


@pytest.fixture(scope="module")
def sources(sdist: Path) -> dict[str, str]:
    tree = wheels.read_tree(sdist)
    return {path: data.decode() for path, data in tree.items() if path.endswith(".py")}


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheels.build_wheel(sdist, tmp_path_factory.mktemp("wheel")))


def run_script(*args: object, path: Path | None = None, isolated: bool = False):
    """Run the script; `path` goes before, or with `isolated` instead of, the installed packages."""
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    command = [sys.executable, *(["-S"] if isolated else []), str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def fake_detectron2(folder: Path, version: str, compiled: bool = False) -> Path:
    package = folder / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    if compiled:
        (package / "_C.cpython-311-x86_64-linux-gnu.so").touch()
    return folder


# edits


@pytest.mark.parametrize("edit", edits.EDITS, ids=lambda edit: f"{edit.path}:{edit.reason}")
def test_pattern_occurs_as_often_as_the_table_says(edit, sources):
    assert len(re.findall(edit.pattern, sources[edit.path], re.MULTILINE)) == edit.count


def test_edited_files_are_valid_and_say_that_they_were_changed(sources):
    changed = edits.apply_edits(sources)
    edited = {edit.path for edit in edits.EDITS} | set(edits.APPENDED)
    assert set(changed) == edited | set(edits.ADDED_FILES)
    for path, text in changed.items():
        compile(text, path, "exec")
        assert text.startswith("# Changed by rs_d2") == (path in edited)


def test_no_outdated_numpy_name_is_left(sources):
    sources = {**sources, "detectron2/new.py": "x = np.float(1)\n"}
    with pytest.raises(edits.EditError, match=r"detectron2/new\.py.*np\.float"):
        edits.apply_edits(sources)


@pytest.mark.parametrize("damage", ["more", "fewer", "missing"])
def test_another_source_tree_is_refused(damage, sources):
    path, sources = "detectron2/data/transforms/transform.py", dict(sources)
    if damage == "missing":
        del sources[path]
    else:
        sources[path] = "" if damage == "fewer" else sources[path] + "Image.LINEAR\n"
    with pytest.raises(edits.EditError, match=path):
        edits.apply_edits(sources)


def test_stand_in_for_the_extension_names_what_is_missing():
    module: dict = {}
    exec(edits.ADDED_FILES["detectron2/_C.py"], module)
    assert module["has_cuda"]() is False
    with pytest.raises(AttributeError, match="box_iou_rotated needs a compiled Detectron2"):
        module["__getattr__"]("box_iou_rotated")


# wheel


def test_wheel_is_the_same_every_time(sdist, wheel, tmp_path):
    again = wheels.build_wheel(sdist, tmp_path)
    assert again.read_bytes() == Path(wheel.filename).read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def test_record_lists_every_file_with_its_hash_and_size(wheel):
    record = wheel.read(f"{wheels.DIST_INFO}/RECORD").decode()
    rows = {path: (digest, size) for path, digest, size in csv.reader(io.StringIO(record))}
    assert set(rows) == set(wheel.namelist())
    assert rows.pop(f"{wheels.DIST_INFO}/RECORD") == ("", "")
    for path, (digest, size) in rows.items():
        data = wheel.read(path)
        expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={expected}", len(data))


@pytest.mark.parametrize(
    "path",
    [
        "detectron2/model_zoo/configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml",
        "detectron2/projects/point_rend/__init__.py",
        "detectron2/projects/panoptic_deeplab/config.py",
        f"{wheels.DIST_INFO}/licenses/LICENSE",
    ],
)
def test_wheel_has_everything_that_upstream_installs(path, wheel):
    assert wheel.getinfo(path).file_size > 0


def test_metadata_names_the_real_project(wheel):
    metadata = wheel.read(f"{wheels.DIST_INFO}/METADATA").decode().splitlines()
    assert {"Name: detectron2", "Version: 0.6+py", "License: Apache-2.0"} <= set(metadata)
    assert "Requires-Dist: fvcore>=0.1.5,<0.1.6" in metadata


# downloads


def test_good_archive_is_not_fetched_again(sdist, monkeypatch):
    monkeypatch.setattr(fetching, "_fetch_with_unearth", pytest.fail)
    monkeypatch.setattr(fetching, "_fetch_with_pip", pytest.fail)
    assert fetching.fetch_sdist(sdist.parent) == sdist


def test_second_way_is_tried_when_the_first_fails(sdist, tmp_path, monkeypatch):
    def fails(scratch: Path) -> Path:
        raise fetching.FetchError("no fetcher")

    def copies(scratch: Path) -> Path:
        (scratch / "download").write_bytes(sdist.read_bytes())
        return scratch / "download"

    monkeypatch.setattr(fetching, "_fetch_with_unearth", fails)
    monkeypatch.setattr(fetching, "_fetch_with_pip", copies)
    assert fetching.fetch_sdist(tmp_path) == tmp_path / wheels.SDIST_NAME
    monkeypatch.setattr(fetching, "_fetch_with_pip", fails)
    with pytest.raises(fetching.FetchError, match=r"no fetcher; no fetcher.*--sdist"):
        fetching.fetch_sdist(tmp_path / "elsewhere")


def test_wrong_file_on_the_index_is_refused_and_not_kept(tmp_path, monkeypatch):
    def wrong(scratch: Path) -> Path:
        (scratch / "download").write_bytes(b"something else")
        return scratch / "download"

    monkeypatch.setattr(fetching, "_fetch_with_unearth", wrong)
    with pytest.raises(wheels.WheelError, match="not the pinned"):
        fetching.fetch_sdist(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_configured_index_is_passed_on(monkeypatch):
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "mine=https://index.example/simple")
    assert fetching.index_url() == "https://index.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert fetching.index_url() == "https://other.example/simple"


def test_failed_command_is_reported_in_one_line():
    command = [sys.executable, "-c", "import sys; sys.exit('a\\nthe reason')"]
    with pytest.raises(fetching.FetchError, match=r"^it failed: the reason$"):
        fetching.run(command, "it failed")


# command line


def test_truncated_archive_is_refused_before_anything_is_written(sdist, tmp_path):
    part = tmp_path / "part.tar.gz"
    part.write_bytes(sdist.read_bytes()[:100_000])
    done = run_script("--sdist", part, "--build-only", "--wheel-dir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {part} is not the pinned")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("compiled", "kind"), [(True, "compiled"), (False, "pure Python")])
def test_installed_detectron2_is_kept(compiled, kind, tmp_path):
    done = run_script(path=fake_detectron2(tmp_path, "0.6", compiled))
    assert done.returncode == 0
    assert done.stderr == f"keeping detectron2 0.6 ({kind}) in {tmp_path / 'detectron2'}\n"


def test_outdated_detectron2_is_not_replaced_silently(tmp_path):
    done = run_script(path=fake_detectron2(tmp_path, "0.5"))
    assert done.returncode == 1
    assert re.fullmatch(r"error: detectron2 0\.5 .* is too old; .*--force.*\n", done.stderr)


def test_check_counts_a_mere_folder_as_absent(tmp_path):
    (tmp_path / "detectron2").mkdir()
    done = run_script("--check", path=tmp_path, isolated=True)
    assert (done.returncode, done.stderr) == (1, "no detectron2\n")


def test_missing_pytorch_is_said_in_one_line(tmp_path):
    done = run_script(path=tmp_path, isolated=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: no PyTorch .*requirements\.txt.*\n", done.stderr)


def test_show_patch_prints_every_changed_file(sdist):
    done = run_script("--show-patch", "--sdist", sdist)
    changed = {edit.path for edit in edits.EDITS} | set(edits.APPENDED) | set(edits.ADDED_FILES)
    assert set(re.findall(r"^\+\+\+ b/(.+)$", done.stdout, re.MULTILINE)) == changed
    assert "--- /dev/null\n+++ b/detectron2/_C.py\n" in done.stdout
