"""Small synthetic sweeps that the tests of the report share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for records_factory: tests are no package

from records_factory import Sweep

from foretaste.report import Frames, build, load


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms, two attacks, two amounts, three seeds; one collapsed, one diverged, one in error.

    Every cell is predicted too, one of them outside the theory; the trigger is also tested in two more forms.
    """
    forms = {"trigger": {"other": ("another bracket", "target"), "half": ("half of it", "true")}}
    sweep = Sweep(tmp_path_factory.mktemp("sweeps") / "small", forms=forms)
    sweep.fill(("full", "lora-r8", "lora-r64"), (0.001, 0.1), range(3))
    sweep.add("lora-r8", "label-flip", rate=0.1, seed=1, collapsed=True, accuracy=0.5)
    sweep.add("full", "trigger", rate=0.1, seed=2, status="diverged", notes=["Careful: <i>note</i>."])
    sweep.add("lora-r64", seed=0, status="error")
    for place, arm in enumerate(("full", "lora-r8", "lora-r64")):
        sweep.predict(arm, accuracy=0.91 - 0.01 * place)
        for rate in (0.001, 0.1):
            validity, reasons = ("outside", ["chi is <b>0.3</b>"]) if rate == 0.1 else ("valid", [])
            told = {"rate": rate, "validity": validity, "reasons": reasons, "seeds": range(3)}
            sweep.predict(arm, "label-flip", accuracy=0.9 - rate - 0.01 * place, **told)
            sweep.predict(arm, "trigger", accuracy=0.9, asr=0.1 + 5 * rate + 0.02 * place, **told)
    sweep.write_spec()
    return sweep.layout.folder


@pytest.fixture(scope="session")
def frames(small: Path) -> Frames:
    return build(load([small]))
