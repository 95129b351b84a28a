"""Keep libraries from calling home. Imports nothing: call it before gradio, transformers or huggingface-hub."""

import os
from collections.abc import MutableMapping


def apply(*, download: bool = False, environment: MutableMapping[str, str] | None = None) -> None:
    """Set the environment so that nothing leaves this computer.

    The values win over what the user's shell exports: a promise of Lectern, not a preference.

    Args:
        download: the user asked for a model from the hub (--download), the one contact allowed.
        environment: os.environ when None.
    """
    values = os.environ if environment is None else environment
    values["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio counts only the text "True" as on
    values["GRADIO_SHARE"] = "False"
    values["HF_HUB_DISABLE_TELEMETRY"] = "1"
    values["DO_NOT_TRACK"] = "1"
    values["HF_HUB_OFFLINE"] = "0" if download else "1"
    values["TOKENIZERS_PARALLELISM"] = "false"  # no warning when a worker process is forked
