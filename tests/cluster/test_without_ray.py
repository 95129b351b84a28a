"""Where `setup --with ray` was not run."""

import os
import subprocess
import sys

from app.settings import SMALL_MODEL
from tests.serving import ROOT


def test_without_ray_the_command_says_what_to_do(tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('no ray')\n")
    home = str(tmp_path / "home")
    command = ["-m", "app.cli", "serve", "--replicas", "2", "--home", home, "--model", str(SMALL_MODEL)]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    answer = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120)
    assert answer.returncode == 2 and "setup --with ray" in answer.stderr
