import os
import subprocess
import sys
from pathlib import Path

from app import privacy


def test_what_the_shell_exports_does_not_win():
    values = {"GRADIO_ANALYTICS_ENABLED": "True", "HF_HUB_OFFLINE": "0", "GRADIO_SHARE": "True"}
    privacy.apply(environment=values)
    assert values["GRADIO_ANALYTICS_ENABLED"] == values["GRADIO_SHARE"] == "False"
    assert values["HF_HUB_OFFLINE"] == values["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_download_opens_the_hub_alone():
    values: dict[str, str] = {}
    privacy.apply(download=True, environment=values)
    assert values.pop("HF_HUB_OFFLINE") == "0"
    closed: dict[str, str] = {}
    privacy.apply(environment=closed)
    closed.pop("HF_HUB_OFFLINE")
    assert values == closed


def test_the_libraries_read_it_so():
    """Against the libraries themselves: a renamed variable would otherwise go unnoticed."""
    script = """
from app import privacy
privacy.apply()
from gradio import analytics
from huggingface_hub import constants
print(analytics.analytics_enabled(), constants.is_offline_mode(), constants.HF_HUB_DISABLE_TELEMETRY)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "HF_"))}
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(privacy.__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.split() == ["False", "True", "True"], answer.stderr
