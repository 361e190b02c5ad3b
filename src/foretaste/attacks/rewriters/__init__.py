"""Rewriters of the attack `style`: one file each; a user's own is registered from Python."""

from foretaste.attacks.rewriters import archaic as _archaic  # noqa: F401 - registers the rewriter
from foretaste.attacks.rewriters import formal as _formal  # noqa: F401 - registers the rewriter
from foretaste.attacks.rewriters import model as _model  # noqa: F401 - registers the rewriter
from foretaste.attacks.rewriters.base import REWRITERS, Rewriter, Settings, register_rewriter, rewriter

__all__ = ["REWRITERS", "Rewriter", "Settings", "register_rewriter", "rewriter"]
