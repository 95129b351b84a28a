"""The page. What it shows is made by plain functions and generators; only the build functions know Gradio."""

import os

# Gradio reads it while it is imported, so it cannot wait for a call: without it two hosts are looked up.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
