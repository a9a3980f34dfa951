"""Package metadata; pyproject.toml configures the tools, requirements.in has the exact pins."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "rs_d2" / "version.py").read_text())[1]

EXTRAS = {
    "digits": ["scikit-learn>=1.3"],  # the demo's data set
    "evaluation": ["hotcoco>=1.3,<2", "jinja2>=3", "matplotlib"],  # fast AP, the report
    "export": ["onnx>=1.17", "onnxruntime>=1.20"],  # models as ONNX files, and running them
    "lvis": ["lvis>=0.5.3"],  # LVIS evaluation without hotcoco; brings opencv-python
    "dev": [
        "hypothesis>=6.100",
        "pytest>=8",
        "pytest-timeout>=2.2",
        "pytest-xdist>=3.5",
        "ruff>=0.6",
    ],
}
EXTRAS["all"] = [requirement for extra in EXTRAS.values() for requirement in extra]

setup(
    name="rs_d2",
    version=VERSION,
    description="Rank & Sort Loss for object detection and instance segmentation in Detectron2",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    # Detectron2 is not listed: it is published on no package index, so a requirement could not be
    # met. Install it with tools/install_detectron2.py or from its repository; train_net.py says so
    # when it is missing.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26,<3",
        "Pillow>=10",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.9,<0.2",
        "pycocotools>=2.0.8",
        "tabulate",
        "tqdm",
    ],
    extras_require=EXTRAS,
    packages=[*find_packages(include=["rs_d2", "rs_d2.*"]), "rs_d2.configs"],
    package_dir={"rs_d2.configs": "configs"},  # the yaml files, beside the package in a checkout
    package_data={"rs_d2.configs": ["**/*.yaml"], "rs_d2.report": ["*.j2"]},
)
