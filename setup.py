"""Lists the packages: the code, Hydra's namespace plugin, and `conf/` as `verl_care.conf`.

Never `tests` or `scripts`: verl's own wheel installs top-level packages of those names.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["verl_care", "verl_care.*", "hydra_plugins", "hydra_plugins.*"]),
        "verl_care.conf",
        *(f"verl_care.conf.{group}" for group in find_namespace_packages("conf")),
    ],
    package_dir={"verl_care.conf": "conf"},
    package_data={"": ["*.yaml", "*.j2", "*.json", "py.typed"]},
)
