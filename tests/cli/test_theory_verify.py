"""`foretaste theory verify`: table, JSON and page. The verdicts themselves: tests/theory/test_claims.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from foretaste.theory import claims
from foretaste.theory.claims import geometry, poisoning, theorem_3_6
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude

HOSTILE = "<script>alert(1)</script> [bold]&"


def hostile(_rng: Any) -> Verdict:
    """A claim whose every text is markup."""
    words = Statement(f"Claim {HOSTILE}", "Malladi", HOSTILE, HOSTILE, HOSTILE)
    return conclude(words, [Trial(HOSTILE, False)], {HOSTILE: 1.5})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = (geometry.fisher_identity, poisoning.flips_tell_lora_apart, theorem_3_6.all_pairs_ordered, hostile)
    monkeypatch.setattr(claims, "CLAIMS", kept)


def test_the_table(cli: Any) -> None:
    done = cli("theory", "verify")
    assert done.code == 0
    text = " ".join(done.out.split())
    assert "4 claims: 1 holds, 1 holds only if, 2 fails" in text
    for part in ("TTR Theorem", "holds only if", "[bold]&"):
        assert part in text


def test_json(cli: Any) -> None:
    done = cli("theory", "verify", "--json", "--seed", 7)
    assert (done.code, done.err) == (0, "")
    content = json.loads(done.out)
    assert (content["seed"], content["page"]) == (7, None)
    assert content["claims"] == [verdict.to_json() for verdict in claims.verify(7)]
    assert [claim["verdict"] for claim in content["claims"]] == ["holds", "fails", "holds only if", "fails"]


def test_the_page_is_offline_escaped_and_has_both_looks(cli: Any, tmp_path: Path) -> None:
    done = cli("theory", "verify", "-o", tmp_path / "page", "--json")
    assert done.code == 0
    index = tmp_path / "page" / "index.html"
    assert json.loads(done.out)["page"] == str(index)
    assert [path.name for path in index.parent.iterdir()] == ["index.html"]
    html = index.read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt; [bold]&amp;") >= 6
    assert not re.search(r"""(?:src|href)=["'](?!#)""", html)
    assert "default-src 'none'" in html
    assert "@media (prefers-color-scheme: dark)" in html
    targets = re.findall(r'href="#([^"]+)"', html)
    assert len(targets) == 4
    assert sorted(targets) == sorted(re.findall(r'<article class="claim" id="([^"]+)"', html))
    for verdict in claims.verify(0)[:3]:
        for text in (verdict.conditions, verdict.why_it_matters, *verdict.numbers):
            assert (
                text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
                in html
            )
