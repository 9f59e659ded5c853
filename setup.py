"""Packaging of hear-pretrainedsed: what it is called, and why it needs what it needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# tools/make_env.py reads the lists below as literals. Bounds are known incompatibilities only;
# constraints.txt pins the versions that were tested together.
CORE = [
    "torch",  # every model is a torch module
    "numpy<2.4",  # arrays at every border; sed_scores_eval and psds_eval fail on 2.4
    "scipy",  # median filters over scores, filter design
    "soundfile",  # reads wav, flac, ogg and mp3 through libsndfile
    "soxr",  # resampling of recordings at other rates
    "safetensors",  # a checkpoint format that cannot carry code
    "typer",  # the command line
    "rich",  # tables and progress bars of the command line
    "matplotlib",  # pictures of spectrograms with events; imported when one is drawn
]

EXTRAS = {
    "downstream": [
        "lightning",  # trainer, DDP and checkpoints of fine-tuning
        "torchmetrics>=1.5.2",  # used by lightning; older ones break heareval's trainer on numpy 2
        "pandas<3",  # score tables of sed_scores_eval, which fails on pandas 3
        "h5py",  # caches of embeddings
        "tensorflow-datasets",  # corpora as random-access records, without TensorFlow
        "sed_eval",  # needed by sed_scores_eval, which is in WITHOUT_DEPENDENCIES
        "lazy_dataset",  # needed by sed_scores_eval
        "einops",  # needed by sed_scores_eval
    ],
    "pretraining": [
        "lightning",  # trainer, DDP and checkpoints of pre-training
        "torchmetrics>=1.5.2",  # used by lightning; older ones break heareval's trainer on numpy 2
        "tensorboardX",  # the default logger
        "pandas<3",  # needed by sed_scores_eval (PSDS1 of validation), which fails on pandas 3
        "sed_eval",  # needed by sed_scores_eval, which is in WITHOUT_DEPENDENCIES
        "lazy_dataset",  # needed by sed_scores_eval
        "h5py",  # logits of the teacher ensemble
        "tensorflow-datasets",  # corpora as random-access records, without TensorFlow
    ],
    "hear": [
        "tensorflow-cpu",  # heareval and hear-validator import TensorFlow
        "pytorch-lightning==1.8.6",  # the last in which stock heareval's test step works
        "torchmetrics>=1.5.2",  # older ones break pytorch-lightning 1.8 on numpy 2
        "tensorboardX",  # imported by pytorch-lightning 1.8
        "setuptools<82",  # pkg_resources, imported by pytorch-lightning 1.8
        "pynvml<11.5",  # the GPU's name as bytes, as heareval expects
        "click",  # heareval's command line
        "dcase-util",  # heareval's event lists
        "intervaltree",  # heareval's labels by time
        "more-itertools",  # imported by heareval
        "numba",  # imported by heareval
        "pandas<3",  # heareval's label vocabulary
        "python-slugify",  # heareval's file names
        "scikit-learn",  # heareval's scores
        "sed_eval",  # heareval's onset F and segment error rate
        "torchinfo",  # heareval's model summary
        "tqdm",  # heareval's progress bars
    ],
    "export": [
        "onnx",  # the exported graph and its metadata
        "onnxscript",  # torch's exporter writes through it
        "onnxruntime",  # checks the exported graph against torch
    ],
    "ray": [
        "ray",  # sweeps over more than one machine
    ],
    "dev": [
        "pytest",  # the test runner
        "pytest-xdist",  # tests on every core
        "hypothesis",  # property tests
        "ruff",  # lint and format
        "sed_eval",  # oracle of the event metrics
        "psds_eval",  # oracle of PSDS
        "torchaudio",  # oracle of the front ends
        "loguru",  # the log of xares' checker
    ],
}

# Their metadata asks for versions that cannot be met together (heareval: numpy 1.19; hearvalidator:
# "tensorflow" by that name; sed_scores_eval: a pathlib from before Python 3.4). They work with what
# the extras above list: pip install --no-deps -c constraints.txt heareval hearvalidator ...
WITHOUT_DEPENDENCIES = [
    "heareval",  # HEAR's own evaluation kit, unmodified
    "hearvalidator",  # HEAR's own check of the API, unmodified
    "sed_scores_eval",  # PSDS over all thresholds
    "xares",  # its own checker, run on the X-ARES adapter; its benchmark needs much more
]


def read_version() -> str:
    """The version in the package, read as text: importing it would need torch."""
    text = (ROOT / "hear_pretrainedsed" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError('hear_pretrainedsed/__init__.py has no line __version__ = "..."')
    return found.group(1)


def read_long_description() -> str:
    """The README, where there is one."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


if __name__ == "__main__":
    setup(
        name="hear-pretrainedsed",
        version=read_version(),
        description="Pre-trained sound-event-detection models as plugins of the HEAR benchmark",
        long_description=read_long_description(),
        long_description_content_type="text/markdown",
        license="MIT",
        python_requires=">=3.11",
        # The root as the one source folder: an editable install then finds packages added later.
        package_dir={"": "."},
        packages=find_packages(include=["hear_pretrainedsed*", "downstream*", "pretraining*"]),
        package_data={"hear_pretrainedsed": ["assets/*"], "downstream": ["assets/*"]},
        install_requires=CORE,
        extras_require=EXTRAS,
        entry_points={"console_scripts": ["hear-pretrainedsed = hear_pretrainedsed.cli:main"]},
    )
