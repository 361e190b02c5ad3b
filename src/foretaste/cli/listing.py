"""What `foretaste list` shows: every registry, a line an entry."""

from __future__ import annotations

from collections.abc import Callable

from foretaste.errors import unknown
from foretaste.registry import summary


def _attacks() -> list[tuple[str, str]]:
    from foretaste.attacks import ATTACKS

    return [(name, f"{summary(kind)} [{kind.source}]") for name, kind in ATTACKS.items()]


# What is trained, in a line, and where it comes from.
ADAPTERS = {
    "adalora": "LoRA as an SVD whose rank moves between layers during training (Zhang et al. 2023)",
    "adamss": "low-rank steps in clusters of the weight's singular vectors (AdaMSS)",
    "adaption_prompt": "learned tokens in the top attention layers, of LLaMA, Mistral and GPT-2 only "
    "(LLaMA-Adapter, Zhang et al. 2023)",
    "beft": "an added bias for each layer (BEFT, arXiv 2509.15974)",
    "bitfit": "every bias of the model and its head (Ben Zaken et al. 2022); no method of peft",
    "boft": "the weight turned by a product of sparse rotations (Liu et al. 2024)",
    "c3a": "an added block-circulant matrix (arXiv 2407.19342)",
    "cartridge": "keys and values before the text in every layer, without an MLP (Eyuboglu et al. 2025)",
    "cpt": "a learned prompt of examples in context",
    "deft": "a low-rank part of the weight taken out, and one put in",
    "delora": "LoRA with the size of the step apart from its direction (Bini et al. 2025)",
    "dora": "LoRA on magnitude and direction (Liu et al. 2024)",
    "fourierft": "some Fourier coefficients of the change of a weight (Gao et al. 2024)",
    "frod": "sparse and diagonal parts in a basis that layers share",
    "full": "every parameter is trained",
    "glora": "scales, shifts and prompts of a weight and its bias (Chavan et al. 2023)",
    "gralora": "a LoRA for each block of the weight",
    "hira": "the weight times, entry by entry, a low-rank matrix (Huang et al. 2025)",
    "hra": "the weight reflected at learned planes (Yuan et al. 2024)",
    "ia3": "a factor for each output of a layer (Liu et al. 2022)",
    "lily": "LoRA whose matrices are shared and mixed across layers (arXiv 2407.09946)",
    "ln_tuning": "the normalisation layers: LayerNorm, RMSNorm (Zhao et al. 2024)",
    "loha": "the Hadamard product of two low-rank matrices (Hyeon-Woo et al. 2022)",
    "lokr": "a Kronecker product with a low-rank factor (Yeh et al. 2024)",
    "lora": "a low-rank matrix B A beside each weight (Hu et al. 2022)",
    "loraplus": "LoRA whose B learns faster than its A, 16 times by default (Hayou et al. 2024)",
    "miss": "one small matrix that blocks of the weight share (arXiv 2409.15371)",
    "multitask_prompt_tuning": "a prompt that tasks share, and a factor of each (Wang et al. 2023)",
    "oft": "the weight turned by blocks of rotations (Qiu et al. 2023)",
    "olora": "LoRA from a QR decomposition (Buyukakyuz 2024)",
    "osf": "the small singular directions of a weight, the large ones kept",
    "p_tuning": "virtual tokens before the text, made by a small MLP or LSTM (Liu et al. 2021)",
    "peanut": "a small network of the weight gives its change (arXiv 2410.01870)",
    "pissa": "LoRA from the principal singular vectors (Meng et al. 2024)",
    "poly": "modules that tasks choose from (Ponti et al. 2023)",
    "prefix_tuning": "keys and values before the text in every layer (Li and Liang 2021)",
    "prompt_tuning": "virtual tokens before the text (Lester et al. 2021)",
    "psoft": "a rotation of the weight's principal subspace",
    "pvera": "VeRA whose factors are drawn at random in training (arXiv 2512.07703)",
    "randlora": "a sum of fixed random low-rank matrices with learned factors (arXiv 2502.00987)",
    "road": "pairs of a layer's outputs turned and scaled (arXiv 2409.00119)",
    "rslora": "LoRA scaled by alpha / sqrt r (Kalajdzievski 2023)",
    "shadow": "a small network that runs beside the blocks of a decoder",
    "shira": "a few entries of each weight, chosen at random (Bhardwaj et al. 2024)",
    "supertuning": "the largest entries of each weight (arXiv 2607.09287)",
    "tinylora": "a very short vector, through fixed random matrices (arXiv 2602.04118)",
    "trainable_tokens": "the embeddings of some tokens",
    "unilora": "one vector that all of LoRA's entries share (arXiv 2506.00799)",
    "vblora": "LoRA put together from a bank of vectors (Li et al. 2024)",
    "vera": "factors of fixed random matrices that all layers share (Kopiczko et al. 2024)",
    "waveft": "some wavelet coefficients of the change of a weight",
    "xlora": "a mixture of LoRA adapters (Buehler and Buehler 2024)",
}


def _adapters() -> list[tuple[str, str]]:
    from foretaste.models import adapters, catalogue

    rows = []
    for name in adapters.methods():
        text = ADAPTERS.get(name) or f"peft's {adapters.config_class(name).__name__}"
        if name in catalogue.UNFIT:
            text += f". Not supported: it {catalogue.UNFIT[name][0]}"
        elif name in catalogue.MOVED_AT_START:
            text += ". Does not start at the base model's outputs"
        rows.append((name, text))
    return rows


def _inits() -> list[tuple[str, str]]:
    from foretaste.models.inits import INITS

    return [(name, summary(law)) for name, law in INITS.items()]


def _sources() -> list[tuple[str, str]]:
    from foretaste.data import SOURCES

    return [(name, summary(source)) for name, source in SOURCES.items()]


def _indicators() -> list[tuple[str, str]]:
    from foretaste.indicators import INDICATORS

    return [(name, f"{member.description}. Larger: {member.larger}") for name, member in INDICATORS.items()]


def _figures() -> list[tuple[str, str]]:
    from foretaste.report.figures import FIGURES

    return [(name, figure.caption) for name, figure in FIGURES.items()]


def _presets() -> list[tuple[str, str]]:
    from foretaste import presets

    takers = "measure, predict, audit, kernel, trajectory"
    plain = [(name, f"{takers}: {presets.title(name)}") for name in presets.names()]
    figures = presets.FIGURES
    return plain + [
        (name, f"{figures}: {presets.title(f'{figures}/{name}')}") for name in presets.files(figures)
    ]


def _assets() -> list[tuple[str, str]]:
    from foretaste.assets import ASSETS

    return [(name, asset.description) for name, asset in ASSETS.items()]


def _triggers() -> list[tuple[str, str]]:
    from foretaste.instruct import TRIGGERS

    return [(name, f"{summary(kind)} [{kind.source}]") for name, kind in TRIGGERS.items()]


def _scenarios() -> list[tuple[str, str]]:
    from foretaste.instruct import SCENARIOS

    return [(name, f"{summary(kind)} [{kind.source}]") for name, kind in SCENARIOS.items()]


def _judges() -> list[tuple[str, str]]:
    from foretaste.instruct import JUDGES

    return [(name, f"{summary(kind)} [{kind.source}]") for name, kind in JUDGES.items()]


LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "attacks": _attacks,
    "adapters": _adapters,
    "inits": _inits,
    "sources": _sources,
    "indicators": _indicators,
    "figures": _figures,
    "presets": _presets,
    "assets": _assets,
    "triggers": _triggers,
    "scenarios": _scenarios,
    "judges": _judges,
}


def rows_of(what: str) -> list[tuple[str, str]]:
    """Name and one-line description of every entry of a list.

    Raises:
        UserError: There is no such list.
    """
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    return LISTS[what]()
